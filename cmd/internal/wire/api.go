package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	goruntime "runtime"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/server"
	"github.com/berthd/berth/agent/source"
	"github.com/berthd/berth/agent/status"
	"github.com/berthd/berth/cri/api"
	"github.com/berthd/berth/cri/logfile"
)

// serveAPI is the agent's HTTP API over its parts.
func (n *node) serveAPI(set *source.Set, store *status.Store, ready func()) *server.Server {
	cfg := server.Config{
		Pods: store, Events: store, Sources: manifests{set}, Logs: logs{}, Terminate: n.dispatcher.Terminate,
		Version: n.version(time.Now()), Amend: n.amend(), Listening: ready, Log: n.o.Log,
	}
	if n.embedded != nil {
		cfg.Streams = n.embedded.streaming
		cfg.Images = images{n.embedded.images}
		cfg.ImportFolder = importedFiles(n.embedded.imports)
		cfg.Audit = n.audit
	} else {
		cfg.Streams = server.Forward(externalStreams{n.conn})
		cfg.Images = externalImages{n.external}
		if n.external.name == berth {
			cfg.Images = berthImages{externalImages{n.external}}
			cfg.Audit = n.audit
		}
	}
	return server.New(cfg)
}

func (n *node) version(started time.Time) func() server.Version {
	v := server.Version{Berth: n.o.Version, Go: goruntime.Version(), PID: os.Getpid(), Started: started, StateDir: n.o.StateDir, RootDir: n.o.RootDir, Node: n.o.NodeName}
	if n.embedded != nil {
		b := n.embedded.binary
		v.Runtime = server.Runtime{Name: b.Name, Version: b.Version, Path: b.Path, Why: b.Why}
	} else {
		v.Runtime = server.Runtime{Name: "external", Path: n.o.Endpoint, Why: "the configuration names this container runtime"}
		if x := n.external; x.name != "" {
			v.Runtime.Name, v.Runtime.Version = x.name, x.version
		}
	}
	return func() server.Version { return v }
}

// audit lists what the runtime's records do not account for.
func (n *node) audit(ctx context.Context) ([]server.Leak, error) {
	ask := func(ctx context.Context, r *api.AuditRequest) (*api.AuditResponse, error) {
		return api.NewBerthClient(n.conn).Audit(ctx, r)
	}
	if n.embedded != nil {
		ask = n.inProcess.Berth().Audit
	}
	r, err := ask(ctx, &api.AuditRequest{})
	if err != nil {
		return nil, err
	}
	leaks := []server.Leak{}
	for _, l := range r.Leaks {
		kind := strings.ToLower(strings.TrimPrefix(l.Kind.String(), "LEAK_KIND_"))
		leaks = append(leaks, server.Leak{Kind: kind, ID: l.Id, Owner: l.Owner, Why: l.Why})
	}
	return leaks, nil
}

// manifests is source.Set as agent/server wants it.
type manifests struct{ *source.Set }

func apiProblems(problems []source.Problem) []server.Problem {
	out := make([]server.Problem, 0, len(problems))
	for _, p := range problems {
		out = append(out, server.Problem{File: p.File, Line: p.Line, Document: p.Document, Object: server.Ref(p.Object), FieldPath: p.FieldPath, Message: p.Message})
	}
	return out
}

func (m manifests) Apply(ctx context.Context, body []byte, dryRun bool) ([]server.Applied, []server.Problem, error) {
	if dryRun {
		refs, problems, err := source.Check("run", bytes.NewReader(body))
		out := make([]server.Applied, 0, len(refs))
		for _, r := range refs {
			out = append(out, server.Applied{Ref: server.Ref(r)})
		}
		return out, apiProblems(problems), err
	}
	applied, problems, err := m.Set.Apply(ctx, body)
	out := make([]server.Applied, 0, len(applied))
	for _, a := range applied {
		out = append(out, server.Applied{Ref: server.Ref(a.Ref), UID: a.UID, Change: string(a.Change)})
	}
	return out, apiProblems(problems), err
}

func (m manifests) Remove(ctx context.Context, namespace, name string) (bool, error) {
	return m.Set.Remove(ctx, source.Ref{Kind: "Pod", Namespace: namespace, Name: name})
}

func (m manifests) Problems() []server.Problem { return apiProblems(m.Set.Problems()) }

func (m manifests) ManifestOf(p *v1.Pod) string {
	return m.Set.FileOf(source.Ref{Kind: "Pod", Namespace: p.Namespace, Name: p.Name})
}

// logs is cri/logfile as agent/server wants it.
type logs struct{}

// endPeriod is how often a followed log's container is asked whether it has ended.
const endPeriod = 200 * time.Millisecond

func (logs) Logs(ctx context.Context, path string, o server.LogOptions, stdout, stderr io.Writer) error {
	opts := logfile.Options{Follow: o.Follow, Tail: o.Tail, Since: o.Since, LimitBytes: o.LimitBytes, Timestamps: o.Timestamps, Rotated: true}
	if o.Follow {
		ended := make(chan struct{})
		opts.Ended = ended
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		defer func() { cancel(); <-done }()
		go func() {
			defer close(done)
			t := time.NewTicker(endPeriod)
			defer t.Stop()
			for !o.Ended() {
				select {
				case <-ctx.Done():
					return
				case <-t.C:
				}
			}
			close(ended)
		}()
	}
	err := logfile.Read(ctx, path, opts, stdout, stderr)
	if errors.Is(err, os.ErrNotExist) {
		return &pod.Error{Op: "read the log", Kind: pod.NotFound, Err: err}
	}
	return err
}
