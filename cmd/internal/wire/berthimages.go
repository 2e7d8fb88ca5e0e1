package wire

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/runtime"
	"github.com/berthd/berth/agent/server"
	"github.com/berthd/berth/cri/api"
)

// berthImages are those of Berth's own runtime in another process, which does
// more than CRI says.
type berthImages struct{ externalImages }

// chunk is how much of an archive is sent at once.
const chunk = 512 << 10

func (b berthImages) berth() api.BerthClient { return api.NewBerthClient(b.x.conn) }

func phase(p api.Phase) string { return strings.ToLower(strings.TrimPrefix(p.String(), "PHASE_")) }

func serverProgress(p *api.Progress) server.Progress {
	out := server.Progress{Ref: p.GetRef(), Phase: phase(p.GetPhase()), Done: p.GetDoneBytes(), Total: p.GetTotalBytes()}
	for _, l := range p.GetLayers() {
		out.Layers = append(out.Layers, server.Layer{Digest: l.Digest, Phase: phase(l.Phase), Done: l.DoneBytes, Total: l.TotalBytes})
	}
	return out
}

func serverImage(i *api.Image) server.Image {
	return server.Image{ID: i.GetId(), Tags: i.GetRepoTags(), Digests: i.GetRepoDigests(), Size: i.GetSizeBytes()}
}

// errBroke is a stream that ended without saying what came of it.
var errBroke = errors.New("the container runtime's answer broke off: see its log")

// berthError is what went wrong in a call; where that was the connection, it says so.
func berthError(err error) error {
	if errors.Is(err, io.EOF) {
		return &pod.Error{Kind: pod.Unavailable, Err: errBroke}
	}
	if s := status.Convert(err); s.Code() == codes.DataLoss {
		return &pod.Error{Kind: pod.Corrupt, Err: errors.New(s.Message())}
	}
	return runtime.Failed("", err)
}

// last passes on the messages of a stream until done says that one was the last.
func last[T any](from grpc.ServerStreamingClient[T], done func(*T) bool) error {
	for {
		m, err := from.Recv()
		if err != nil {
			return berthError(err)
		}
		if done(m) {
			// The stream's own end is read too, so that a failure in it is seen.
			if _, err := from.Recv(); !errors.Is(err, io.EOF) {
				return berthError(err)
			}
			return nil
		}
	}
}

func (b berthImages) Pull(ctx context.Context, ref string, auth *server.Auth, progress func(server.Progress)) (out server.Image, err error) {
	q := &api.PullImageRequest{Image: ref}
	if auth != nil {
		q.Auth = &api.RegistryAuth{Username: auth.Username, Password: auth.Password}
	}
	s, err := b.berth().PullImage(ctx, q)
	if err != nil {
		return out, berthError(err)
	}
	return out, last(s, func(m *api.PullImageResponse) bool {
		if m.Progress != nil {
			progress(serverProgress(m.Progress))
			return false
		}
		out = serverImage(m.Image)
		return true
	})
}

func (b berthImages) Import(ctx context.Context, archive io.Reader, progress func(server.Progress)) (out []server.Image, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := b.berth().ImportImages(ctx)
	if err != nil {
		return nil, berthError(err)
	}
	sent := make(chan error, 1)
	go func() { // ends with the archive, or with the call; a read that hangs, with the request that it reads
		sent <- send(archive, func(c []byte) error { return s.Send(&api.ImportImagesRequest{Chunk: c}) }, s.CloseSend, cancel)
	}()
	err = last[api.ImportImagesResponse](s, func(m *api.ImportImagesResponse) bool {
		if m.Progress != nil {
			progress(serverProgress(m.Progress))
			return false
		}
		for _, i := range m.Images {
			out = append(out, serverImage(i))
		}
		return true
	})
	select {
	case read := <-sent:
		if read != nil {
			return nil, read // the archive's end explains the call's
		}
	default: // the runtime had enough of it
	}
	return out, err
}

// send sends an archive in pieces. One that cannot be read ends the call by abort.
func send(archive io.Reader, piece func([]byte) error, end func() error, abort func()) error {
	for {
		buf := make([]byte, chunk) // gRPC may keep it
		n, err := io.ReadFull(archive, buf)
		if n > 0 && piece(buf[:n]) != nil {
			return nil // the call has ended; its own error says why
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return end()
		case err != nil:
			abort()
			return &pod.Error{Op: "read the archive", Kind: pod.Invalid, Err: err}
		}
	}
}

func (b berthImages) Verify(ctx context.Context, repair bool, progress func(server.Progress)) ([]server.Damaged, error) {
	out := []server.Damaged{}
	s, err := b.berth().VerifyImages(ctx, &api.VerifyImagesRequest{Repair: repair})
	if err != nil {
		return nil, berthError(err)
	}
	return out, last(s, func(m *api.VerifyImagesResponse) bool {
		if m.Progress != nil {
			progress(serverProgress(m.Progress))
			return false
		}
		for _, d := range m.Damaged {
			out = append(out, server.Damaged{Digest: d.Digest, Why: d.Why, Images: d.Images})
		}
		return true
	})
}
