package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/image"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestGRPCError(t *testing.T) {
	for _, test := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{fmt.Errorf("x: %w", errdefs.ErrNotFound), codes.NotFound, "x"},
		{fmt.Errorf("x: %w", errdefs.ErrAlreadyExists), codes.AlreadyExists, "x"},
		{fmt.Errorf("no room: %w", syscall.ENOSPC), codes.ResourceExhausted, "no room"},
		{fmt.Errorf("slow: %w: %w", errdefs.ErrNotFound, context.DeadlineExceeded), codes.DeadlineExceeded, "slow"},
		{errors.New("bad \xff byte"), codes.Unknown, "bad ? byte"},
		{status.Error(codes.Aborted, "kept"), codes.Aborted, "kept"},
		{&image.Error{Op: "pull", Ref: "r", Code: image.CodeUnavailable, Err: errors.New("dead")}, codes.Unavailable, "RegistryUnavailable: pull"},
		{&image.Error{Op: "pull", Ref: "r", Code: image.CodeBadImage, Err: errors.New("bad")}, codes.FailedPrecondition, "pull r"},
		{&image.Error{Op: "pull", Ref: "r", Code: image.CodeInvalidReference, Err: errors.New("bad")}, codes.InvalidArgument, "pull r"},
		{errNoMetrics, codes.Unimplemented, "metrics"},
	} {
		got := grpcError(test.err)
		if status.Code(got) != test.code || !strings.Contains(status.Convert(got).Message(), test.text) {
			t.Errorf("%v becomes %v, want %v with %q", test.err, got, test.code, test.text)
		}
	}
	if grpcError(nil) != nil {
		t.Error("no error becomes one")
	}
}

func TestChain(t *testing.T) {
	var log bytes.Buffer
	c := NewChain(slog.New(slog.NewTextHandler(&log, nil)))
	info := &grpc.UnaryServerInfo{FullMethod: "/x/Method"}
	_, err := c.Unary(t.Context(), &runtimeapi.VersionRequest{}, info, func(context.Context, any) (any, error) { panic("oops") })
	if status.Code(err) != codes.Internal || !strings.Contains(log.String(), "chain_test.go") {
		t.Errorf("panic: %v\n%s", err, &log)
	}
	err = c.Stream(nil, nil, &grpc.StreamServerInfo{FullMethod: "/x/Stream"}, func(any, grpc.ServerStream) error { panic("oops") })
	if status.Code(err) != codes.Internal {
		t.Errorf("panic in a stream: %v", err)
	}
	large := &runtimeapi.VersionRequest{Version: strings.Repeat("x", maxMessage+1)}
	_, err = c.Unary(t.Context(), large, info, func(context.Context, any) (any, error) { t.Error("it was called"); return nil, nil })
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("large request: %v", err)
	}
	_, err = c.Unary(t.Context(), &runtimeapi.VersionRequest{}, info, func(context.Context, any) (any, error) {
		return &runtimeapi.VersionResponse{Version: large.Version}, nil
	})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("large answer: %v", err)
	}
	for _, test := range []struct {
		req  any
		want time.Duration
	}{
		{&runtimeapi.VersionRequest{}, 2 * time.Minute}, {&runtimeapi.RunPodSandboxRequest{}, 4 * time.Minute},
		{&runtimeapi.StopContainerRequest{Timeout: 60}, 3 * time.Minute}, {&runtimeapi.PullImageRequest{}, 0}, {&runtimeapi.ExecSyncRequest{}, 0},
	} {
		_, _ = c.Unary(t.Context(), test.req, info, func(ctx context.Context, _ any) (any, error) {
			end, ok := ctx.Deadline()
			if got := time.Until(end).Round(time.Second); ok != (test.want > 0) || ok && got != test.want {
				t.Errorf("%T has %v, want %v", test.req, got, test.want)
			}
			return nil, nil
		})
	}
}

// TestNothingIsLeftOut sees that every RPC is the server's own, and not promoted
// from the generated "not implemented" one: that has no receiver to look into.
func TestNothingIsLeftOut(t *testing.T) {
	own := map[string]bool{}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func \(\w+ \*(Server|InProcess)\) (\w+)\(`).FindAllStringSubmatch(string(b), -1) {
			own[m[1]+"."+m[2]] = true
		}
	}
	for _, protocol := range []reflect.Type{reflect.TypeFor[runtimeapi.RuntimeServiceServer](), reflect.TypeFor[runtimeapi.ImageServiceServer]()} {
		for i := range protocol.NumMethod() {
			m := protocol.Method(i)
			for _, who := range []string{"Server", "InProcess"} {
				if m.IsExported() && !own[who+"."+m.Name] {
					t.Errorf("%s has no %s of its own", who, m.Name)
				}
			}
		}
	}
}

func TestEventsCoalesce(t *testing.T) {
	e := NewEvents()
	s := e.subscribe()
	defer e.unsubscribe(s)
	for i := range 3 {
		for _, kind := range []container.EventKind{container.Created, container.Started, container.Stopped} {
			e.OnContainer(container.Event{Kind: kind, ContainerID: fmt.Sprint("c", i), SandboxID: "s"})
		}
	}
	e.OnContainer(container.Event{Kind: container.Deleted, ContainerID: "c0", SandboxID: "s"})
	want := []string{"c0 CONTAINER_DELETED_EVENT", "c1 CONTAINER_STOPPED_EVENT", "c2 CONTAINER_STOPPED_EVENT"}
	for _, w := range want {
		c, err := e.next(t.Context(), s)
		if got := fmt.Sprint(c.id, " ", c.kind); err != nil || got != w {
			t.Errorf("got %s, %v; want %s", got, err, w)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if c, err := e.next(ctx, s); err == nil {
		t.Errorf("one too many: %v", c)
	}
	for i := range maxPending + 1 {
		e.OnSandbox(sandbox.ID(fmt.Sprint(i)))
	}
	if _, err := e.next(t.Context(), s); !errdefs.IsResourceExhausted(err) {
		t.Errorf("too far behind: %v", err)
	}
}

func TestListenRefusesTheLiving(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cri.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil { // what is no socket is stale too
		t.Fatal(err)
	}
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = listen(path)
	contains(t, err, "another program answers")
	l.Close()
	l, err = listen(path)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	l.Close()
}
