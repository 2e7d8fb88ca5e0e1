package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/berthd/berth/cri/api"
	"github.com/berthd/berth/cri/image"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
)

// maxChunk bounds one piece of an imported archive.
const maxChunk = 1 << 20

// berth is the berth.cri.v1 service. It is a type of its own because both
// protocols have a PullImage.
type berth struct {
	api.UnimplementedBerthServer
	s *Server
}

func (s *Server) berth() *berth { return &berth{s: s} }

// PullImage pulls an image and streams how far it is.
func (b *berth) PullImage(r *api.PullImageRequest, to grpc.ServerStreamingServer[api.PullImageResponse]) error {
	if r.GetImage() == "" {
		return errNoImage
	}
	a := r.GetAuth()
	auth := image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
	out := progressTo(func(p *api.Progress) error { return to.Send(&api.PullImageResponse{Progress: p}) })
	img, err := b.s.cfg.Images.Pull(to.Context(), r.GetImage(), auth, out.report)
	if err := out.end(err); err != nil {
		return err
	}
	return to.Send(&api.PullImageResponse{Image: apiImage(img)})
}

// ImportImages stores the images of an archive that comes in chunks.
func (b *berth) ImportImages(stream grpc.BidiStreamingServer[api.ImportImagesRequest, api.ImportImagesResponse]) error {
	out := progressTo(func(p *api.Progress) error { return stream.Send(&api.ImportImagesResponse{Progress: p}) })
	images, err := b.s.cfg.Images.Import(stream.Context(), &chunks{recv: stream.Recv}, out.report)
	if err := out.end(err); err != nil {
		return err
	}
	resp := &api.ImportImagesResponse{}
	for _, img := range images {
		resp.Images = append(resp.Images, apiImage(img))
	}
	return stream.Send(resp)
}

// VerifyImages reads and compares all stored content, and mends it if it is to.
func (b *berth) VerifyImages(r *api.VerifyImagesRequest, to grpc.ServerStreamingServer[api.VerifyImagesResponse]) error {
	out := progressTo(func(p *api.Progress) error { return to.Send(&api.VerifyImagesResponse{Progress: p}) })
	damage, err := b.s.cfg.Images.Verify(to.Context(), r.GetRepair(), out.report)
	if err := out.end(err); err != nil {
		return err
	}
	resp := &api.VerifyImagesResponse{}
	for _, d := range damage {
		resp.Damaged = append(resp.Damaged, &api.DamagedContent{Digest: d.Digest, Why: d.Why, Images: d.Images})
	}
	return to.Send(resp)
}

// Audit asks every part for what no record accounts for. A part that cannot be
// asked fails the audit: an empty answer must mean that nothing leaks.
func (b *berth) Audit(ctx context.Context, _ *api.AuditRequest) (*api.AuditResponse, error) {
	resp := &api.AuditResponse{}
	pins, err := b.s.cfg.Sandboxes.PinLeaks()
	if err != nil {
		return nil, err
	}
	for _, name := range pins {
		resp.Leaks = append(resp.Leaks, &api.Leak{
			Kind: api.LeakKind_LEAK_KIND_NAMESPACE, Id: name, Owner: name, Why: "namespaces are pinned for a sandbox that does not exist",
		})
	}
	for _, list := range b.s.cfg.Leaks {
		leaks, err := list(ctx)
		if err != nil {
			return nil, fmt.Errorf("auditing: %w", err)
		}
		resp.Leaks = append(resp.Leaks, leaks...)
	}
	return resp, nil
}

// ContainerDetail tells what CRI leaves out about a container.
func (b *berth) ContainerDetail(_ context.Context, r *api.ContainerDetailRequest) (*api.ContainerDetailResponse, error) {
	f, err := b.s.containerFacts(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := b.s.cfg.Containers.Status(f.ID)
	if err != nil {
		return nil, err
	}
	resp := &api.ContainerDetailResponse{
		ContainerId: f.ID, SandboxId: f.SandboxID, Pid: int32(f.PID), MonitorLost: st.GetReason() == "ContainerStatusUnknown",
	}
	if f.OOMKills > 0 {
		resp.Oom = &api.OOM{Kills: f.OOMKills, InitKilled: st.GetReason() == "OOMKilled", LastAtNs: st.GetFinishedAt()}
	}
	return resp, nil
}

// progress sends reports, which may come from any goroutine, one at a time, and
// none after its end.
type progress struct {
	mu    sync.Mutex
	send  func(*api.Progress) error
	err   error
	ended bool
}

func progressTo(send func(*api.Progress) error) *progress { return &progress{send: send} }

func (p *progress) report(v image.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || p.err != nil {
		return
	}
	p.err = p.send(apiProgress(v))
}

// end forbids further reports and returns err, or else what went wrong sending.
func (p *progress) end(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if err != nil {
		return err
	}
	return p.err
}

// chunks reads the pieces of an archive as one.
type chunks struct {
	recv func() (*api.ImportImagesRequest, error)
	rest []byte
}

func (c *chunks) Read(b []byte) (int, error) {
	for len(c.rest) == 0 {
		m, err := c.recv()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, fmt.Errorf("reading the archive from the client: %w", err)
		}
		if len(m.GetChunk()) > maxChunk {
			return 0, fmt.Errorf("a chunk of the archive has %d bytes, %d are allowed: %w", len(m.GetChunk()), maxChunk, errdefs.ErrInvalidArgument)
		}
		c.rest = m.GetChunk()
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

var phases = map[image.Phase]api.Phase{
	image.PhaseResolving: api.Phase_PHASE_RESOLVING, image.PhaseWaiting: api.Phase_PHASE_WAITING,
	image.PhaseDownloading: api.Phase_PHASE_DOWNLOADING, image.PhaseUnpacking: api.Phase_PHASE_UNPACKING,
	image.PhaseDone: api.Phase_PHASE_DONE, image.PhaseReading: api.Phase_PHASE_READING, image.PhaseVerifying: api.Phase_PHASE_VERIFYING,
}

func apiProgress(p image.Progress) *api.Progress {
	out := &api.Progress{Ref: p.Ref, Phase: phases[p.Phase], DoneBytes: p.Done, TotalBytes: p.Total}
	for _, l := range p.Layers {
		out.Layers = append(out.Layers, &api.LayerProgress{Digest: l.Digest, Phase: phases[l.Phase], DoneBytes: l.Done, TotalBytes: l.Total})
	}
	return out
}

func apiImage(img image.Image) *api.Image {
	return &api.Image{Id: string(img.ID), RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, SizeBytes: img.Size}
}
