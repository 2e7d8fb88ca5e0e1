package node

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"path/filepath"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Meddler stands between an agent and a real container runtime, and lets calls
// fail, answers lie and calls wait: as runtimes do on bad days.
type Meddler struct {
	// Socket is where it listens, for --container-runtime-endpoint.
	Socket string

	to     *grpc.ClientConn
	server *grpc.Server

	mu     sync.Mutex
	refuse map[string]error
	edit   map[string]func(answer []byte) []byte
	hold   map[string]chan struct{}
}

// Meddle starts one before the runtime of a; both end with a's test.
func (a *Agent) Meddle() *Meddler {
	a.T.Helper()
	to, err := grpc.NewClient("unix://"+a.CRISocket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		a.T.Fatal(err)
	}
	m := &Meddler{Socket: filepath.Join(a.Dir, "meddler.sock"), to: to, refuse: map[string]error{}, edit: map[string]func([]byte) []byte{}, hold: map[string]chan struct{}{}}
	l, err := net.Listen("unix", m.Socket)
	if err != nil {
		a.T.Fatal(err)
	}
	m.server = grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(m.pass))
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = m.server.Serve(l) // until Stop
	}()
	a.T.Cleanup(func() { m.Behave(); m.server.Stop(); <-served; to.Close() })
	return m
}

// Refuse has every call of method fail with err from now on.
func (m *Meddler) Refuse(method string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse[method] = err
}

// Edit changes every answer to method from now on; it works on a message of protobuf.
func (m *Meddler) Edit(method string, edit func(answer []byte) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.edit[method] = edit
}

// Hold has calls of method wait from now on, until Behave.
func (m *Meddler) Hold(method string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold[method] = make(chan struct{})
}

// Behave ends all meddling.
func (m *Meddler) Behave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, held := range m.hold {
		close(held)
	}
	clear(m.hold)
	clear(m.refuse)
	clear(m.edit)
}

func (m *Meddler) rules(method string) (edit func([]byte) []byte, held chan struct{}, refused error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.edit[method], m.hold[method], m.refuse[method]
}

// pass carries one call over: CRI has calls with one answer, and with a stream of them.
func (m *Meddler) pass(_ any, from grpc.ServerStream) error {
	full, _ := grpc.MethodFromServerStream(from)
	method := path.Base(full)
	var request []byte
	if err := from.RecvMsg(&request); err != nil {
		return err
	}
	_, held, refused := m.rules(method)
	if held != nil {
		select {
		case <-held:
		case <-from.Context().Done():
			return from.Context().Err()
		}
	}
	if refused != nil {
		return refused
	}
	to, err := m.to.NewStream(from.Context(), &grpc.StreamDesc{ServerStreams: true}, full)
	if err != nil {
		return err
	}
	if err := errors.Join(to.SendMsg(&request), to.CloseSend()); err != nil {
		return err
	}
	for {
		var answer []byte
		if err := to.RecvMsg(&answer); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if edit, _, _ := m.rules(method); edit != nil {
			answer = edit(answer)
		}
		if err := from.SendMsg(&answer); err != nil {
			return err
		}
	}
}

// rawCodec passes messages as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	if b, ok := v.(*[]byte); ok {
		return *b, nil
	}
	return nil, fmt.Errorf("not a raw message: %T", v)
}

func (rawCodec) Unmarshal(b []byte, v any) error {
	to, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("not a raw message: %T", v)
	}
	*to = append([]byte(nil), b...)
	return nil
}
