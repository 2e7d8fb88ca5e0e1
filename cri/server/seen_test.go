package server

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var rewrite = flag.Bool("rewrite", false, "write docs/cri.md anew from what the tests of this run do")

// seen is what has passed the sockets of all nodes of this run: by RPC, and by
// field (Message.field) that a successful call had set, the tests that did it.
var seen = struct {
	sync.Mutex
	rpcs, fields map[string]map[string]bool
}{rpcs: map[string]map[string]bool{}, fields: map[string]map[string]bool{}}

func note(in map[string]map[string]bool, key, test string) {
	if in[key] == nil {
		in[key] = map[string]bool{}
	}
	in[key][test] = true
}

// recorder watches one node's socket.
type recorder struct{ test string }

// call is one RPC on its way.
type call struct {
	method string
	mu     sync.Mutex
	fields map[string]bool
}

type callKey struct{}

func (recorder) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (recorder) HandleConn(context.Context, stats.ConnStats)                       {}
func (recorder) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, callKey{}, &call{method: info.FullMethodName, fields: map[string]bool{}})
}

func (r recorder) HandleRPC(ctx context.Context, s stats.RPCStats) {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok || !strings.HasPrefix(c.method, "/runtime.v1.") {
		return
	}
	var payload any
	switch s := s.(type) {
	case *stats.InPayload:
		payload = s.Payload
	case *stats.OutPayload:
		payload = s.Payload
	case *stats.End:
		r.ended(c, s.Error == nil || path.Base(c.method) == "GetContainerEvents")
		return
	}
	if m, ok := payload.(proto.Message); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		set(m.ProtoReflect(), c.fields)
	}
}

func (r recorder) ended(c *call, worked bool) {
	test, _, _ := strings.Cut(r.test, "/")
	c.mu.Lock()
	defer c.mu.Unlock()
	seen.Lock()
	defer seen.Unlock()
	note(seen.rpcs, path.Base(c.method), test)
	for f := range c.fields {
		if worked {
			note(seen.fields, f, test)
		}
	}
}

// set collects the fields of m and what is in it that are set.
func set(m protoreflect.Message, out map[string]bool) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		out[string(f.ContainingMessage().Name())+"."+string(f.Name())] = true
		switch {
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				set(v.List().Get(i).Message(), out)
			}
		case f.IsMap() || f.Message() == nil:
		default:
			set(v.Message(), out)
		}
		return true
	})
}

// described walks the services of CRI: their RPCs, and every field of every
// message that can be part of a request or an answer.
func described() (rpcs, fields []string) {
	done := map[protoreflect.FullName]bool{}
	var walk func(m protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		if done[m.FullName()] || m.IsMapEntry() {
			return
		}
		done[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			fields = append(fields, string(m.Name())+"."+string(f.Name()))
			if f.Message() != nil {
				walk(f.Message())
			}
		}
	}
	services := (&runtimeapi.VersionRequest{}).ProtoReflect().Descriptor().ParentFile().Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			rpcs = append(rpcs, string(m.Name()))
			walk(m.Input())
			walk(m.Output())
		}
	}
	slices.Sort(fields)
	return rpcs, fields
}

// checkSeen holds docs/cri.md to what the tests did, if all of them ran.
func checkSeen(code int) int {
	if code != 0 || flag.Lookup("test.run").Value.String() != "" || flag.Lookup("test.skip").Value.String() != "" ||
		flag.Lookup("test.list").Value.String() != "" || os.Getuid() != 0 || len(seen.rpcs) == 0 {
		return code
	}
	doc, err := newPage()
	if err == nil && *rewrite {
		err = os.WriteFile(pagePath, []byte(doc.text()), 0o644)
	} else if err == nil {
		err = doc.holds()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "docs/cri.md: %v\n(go test ./cri/server -rewrite writes it anew; what a runtime does not do is entered in page_test.go)\n", err)
		return 1
	}
	return 0
}

func first(tests map[string]bool) string {
	all := slices.Sorted(maps.Keys(tests))
	if len(all) == 0 {
		return ""
	}
	return all[0]
}
