package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/berthd/berth/cmd/internal/client"
)

// progress shows pulls and imports: a bar a layer on a terminal, else a line
// whenever a phase begins.
type progress struct {
	out   io.Writer
	bars  *mpb.Progress // nil without a terminal
	bar   map[string]*mpb.Bar
	phase map[string]string
}

func newProgress(ctx context.Context, a *app) *progress {
	p := &progress{out: a.Err, bar: map[string]*mpb.Bar{}, phase: map[string]string{}}
	if _, ok := terminal(a.Err); ok {
		p.bars = mpb.NewWithContext(ctx, mpb.WithOutput(a.Err), mpb.WithWidth(60))
	}
	return p
}

func (p *progress) show(u client.Progress) {
	if u.Ref == "" {
		u.Ref = "archive"
	}
	p.part(u.Ref, u.Phase, u.Done, u.Total, len(u.Layers) == 0)
	for _, l := range u.Layers {
		p.part(short(l.Digest), l.Phase, l.Done, l.Total, true)
	}
}

// part shows one thing's progress; measured says that its bytes are worth a bar.
func (p *progress) part(name, phase string, done, total int64, measured bool) {
	if p.bars == nil {
		if phase != "" && p.phase[name] != phase {
			p.phase[name] = phase
			line := name + ": " + phase
			if total > 0 {
				line += " (" + size(total) + ")"
			}
			fmt.Fprintln(p.out, line)
		}
		return
	}
	p.phase[name] = phase
	if !measured {
		return
	}
	bar := p.bar[name]
	if bar == nil {
		bar = p.bars.AddBar(total,
			mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR), decor.Any(func(decor.Statistics) string { return phase }, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersKiloByte("% .1f / % .1f")))
		p.bar[name] = bar
	}
	bar.SetTotal(total, total > 0 && done >= total)
	bar.SetCurrent(done)
}

// end leaves the bars as they are and gives the terminal back.
func (p *progress) end() {
	if p.bars == nil {
		return
	}
	for _, b := range p.bar {
		b.Abort(false)
	}
	p.bars.Wait()
}

// short cuts a digest to what a person compares: sha256:0123456789ab -> 0123456789ab.
func short(digest string) string {
	for i := range digest {
		if digest[i] == ':' {
			digest = digest[i+1:]
			break
		}
	}
	return digest[:min(12, len(digest))]
}
