package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxBreaks is how often in a row a download may break without a new byte.
const maxBreaks = 3

// fetch stores one blob; one that is stored already is held by ctx's lease. What
// another pull fetches at the same time is waited for.
func (d *download) fetch(ctx context.Context, desc ocispec.Descriptor) error {
	failpoint.Hit("cri/image/fetch")
	err := d.fetchBlob(ctx, desc)
	failpoint.Hit("cri/image/fetch-done")
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func (d *download) fetchBlob(ctx context.Context, desc ocispec.Descriptor) error {
	if desc.Size <= 0 {
		return codef(CodeBadImage, "%s is said to have %d bytes", desc.Digest, desc.Size)
	}
	if err := desc.Digest.Validate(); err != nil {
		return codef(CodeBadImage, "%q is no digest: %w", desc.Digest, err)
	}
	desc.Annotations, desc.URLs = nil, nil // nothing of them is to steer where it comes from
	w, err := content.OpenWriter(ctx, d.content, content.WithRef(remotes.MakeRefKey(ctx, desc)), content.WithDescriptor(desc))
	if err != nil {
		return err
	}
	defer w.Close()
	st, err := w.Status()
	if err != nil {
		return err
	}
	b := &blobFetch{download: d, desc: desc, w: w, at: st.Offset, mixed: st.Offset > 0, wrong: map[string]bool{}, broke: map[string]bool{}}
	return b.run(ctx)
}

// sink is where a blob is written to; content.Writer is one.
type sink interface {
	io.Writer
	Truncate(size int64) error
	Digest() digest.Digest
	Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error
}

// blobFetch is one blob on its way into the store.
//
//	open at an offset ──▶ copy ──whole, right──▶ commit
//	   ▲        ▲           │ broken: again from where it stopped
//	   │        └───────────┤
//	   └── another host ◀───┘ whole, wrong: from the beginning
type blobFetch struct {
	*download
	desc   ocispec.Descriptor
	w      sink
	at     int64
	mixed  bool            // not all that there is came from one host
	wrong  map[string]bool // hosts that gave other content
	from   string          // the last host that gave any
	broke  map[string]bool // hosts whose connection broke: the others go on
	breaks int
}

func (b *blobFetch) run(ctx context.Context) error {
	for {
		err := b.part(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case errdefs.IsAlreadyExists(err), codeOf(err) == CodeDiskFull:
			return err
		case err == nil && b.w.Digest() == b.desc.Digest:
			return b.commit(ctx)
		case err == nil:
			if err := b.mismatch(); err != nil {
				return err
			}
			continue
		}
		var broken *brokenError
		if !errors.As(err, &broken) {
			return err
		}
		if b.breaks++; b.breaks >= maxBreaks*len(b.remote.hosts) {
			return broken.err
		}
		b.broke[b.from] = true
		b.log.Info("a download broke off and goes on", "image", b.named.String(), "digest", b.desc.Digest, "at", b.at, "err", broken.err)
		select {
		case <-time.After(time.Duration(b.breaks) * 200 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// brokenError is the end of a body before its time.
type brokenError struct{ err error }

func (b *brokenError) Error() string { return b.err.Error() }
func (b *brokenError) Unwrap() error { return b.err }

// part fetches from where the blob stands to its end, or until it breaks off.
func (b *blobFetch) part(ctx context.Context) error {
	if b.at == b.desc.Size {
		return nil
	}
	kind := "blobs/"
	if images.IsManifestType(b.desc.MediaType) || images.IsIndexType(b.desc.MediaType) {
		kind = "manifests/"
	}
	a := ask{method: http.MethodGet, path: kind + b.desc.Digest.String(), accept: b.desc.MediaType + ", */*", offset: b.at}
	resp, host, err := b.remote.each(ctx, docker.HostCapabilityPull, b.avoid(), a)
	var status *statusError
	if errors.As(err, &status) && status.status == http.StatusRequestedRangeNotSatisfiable && b.at > 0 {
		return b.restart()
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b.mixed = b.mixed || b.at > 0 && b.from != host
	b.from = host
	body, err := b.aligned(resp)
	if err != nil {
		return err
	}
	return b.copy(body, host)
}

// avoid lists the hosts not to ask: those that lie, and those that broke off while
// another is left that did not.
func (b *blobFetch) avoid() map[string]bool {
	out := map[string]bool{}
	left := false
	for _, h := range b.remote.hosts {
		out[h.Host] = b.wrong[h.Host] || b.broke[h.Host]
		left = left || !out[h.Host] && h.Capabilities.Has(docker.HostCapabilityPull)
	}
	if !left {
		clear(b.broke)
		return b.wrong
	}
	return out
}

// aligned gives the body from the offset on.
func (b *blobFetch) aligned(resp *http.Response) (io.Reader, error) {
	if b.at == 0 {
		return resp.Body, nil
	}
	if resp.StatusCode == http.StatusPartialContent {
		if r := resp.Header.Get("Content-Range"); !strings.HasPrefix(r, fmt.Sprintf("bytes %d-", b.at)) {
			return nil, b.restart()
		}
		return resp.Body, nil
	}
	// It does not know ranges.
	if _, err := io.CopyN(io.Discard, resp.Body, b.at); err != nil {
		return nil, &brokenError{fmt.Errorf("connection broke off: %w", err)}
	}
	return resp.Body, nil
}

// restart throws away what there is.
func (b *blobFetch) restart() error {
	if err := b.w.Truncate(0); err != nil {
		return fmt.Errorf("begin blob %s again: %w", b.desc.Digest, err)
	}
	b.at, b.mixed = 0, false
	return &brokenError{codef(CodeUnavailable, "registry does not continue %s", b.desc.Digest)}
}

// copy writes the body to the store.
func (b *blobFetch) copy(body io.Reader, host string) error {
	buf := make([]byte, 128<<10)
	for b.at < b.desc.Size {
		n, err := body.Read(buf[:min(int64(len(buf)), b.desc.Size-b.at)])
		if n > 0 {
			if _, werr := b.w.Write(buf[:n]); werr != nil {
				return fmt.Errorf("store %s: %w", b.desc.Digest, werr)
			}
			b.at, b.breaks = b.at+int64(n), 0
			b.tracker.read(b.desc.Digest.String(), n, b.at)
		}
		switch {
		case b.at == b.desc.Size:
		case errors.Is(err, io.EOF):
			return &brokenError{codef(CodeUnavailable, "%s gave %d of %d bytes: %w", host, b.at, b.desc.Size, io.ErrUnexpectedEOF)}
		case err != nil:
			return &brokenError{fmt.Errorf("connection to %s broke off after %d of %d bytes: %w", host, b.at, b.desc.Size, err)}
		}
	}
	if n, _ := body.Read(buf[:1]); n > 0 {
		b.at = b.desc.Size + 1 // no content has the digest of a shorter one
	}
	return nil
}

// mismatch begins again after content turned out to be wrong: elsewhere, unless
// parts of it came from several hosts or pulls.
func (b *blobFetch) mismatch() error {
	got := b.w.Digest()
	if !b.mixed {
		b.wrong[b.from] = true
		b.log.Warn("a registry gave other content than asked for", "host", b.from, "digest", b.desc.Digest, "got", got)
	}
	if err := b.w.Truncate(0); err != nil {
		return fmt.Errorf("begin blob %s again: %w", b.desc.Digest, err)
	}
	b.at, b.mixed = 0, false
	for _, h := range b.remote.hosts {
		if h.Capabilities.Has(docker.HostCapabilityPull) && !b.wrong[h.Host] {
			return nil
		}
	}
	return codef(CodeDigestMismatch, "%s gave content of digest %s instead of %s", b.from, got, b.desc.Digest)
}

func (b *blobFetch) commit(ctx context.Context) error {
	err := b.w.Commit(ctx, b.desc.Size, b.desc.Digest)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("store %s: %w", b.desc.Digest, err)
	}
	return nil
}
