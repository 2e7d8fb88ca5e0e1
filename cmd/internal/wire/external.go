package wire

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/agent/cgroup"
	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/server"
)

// berth is what Berth's own runtime calls itself, in this process or in another.
const berth = "berth"

// Limits of the talk with a runtime in another process.
const (
	maxCRIMessage = 16 << 20
	// askTime bounds the questions at the start; askEvery is how often they are put
	// to a runtime that does not answer.
	askTime  = 5 * time.Second
	askEvery = time.Second
	// redial is the longest that a runtime which has come back is not found again.
	redial = 3 * time.Second
)

// external is the CRI runtime in another process that Options.Endpoint names.
type external struct {
	conn *grpc.ClientConn
	// name and version are what it calls itself; driver is the cgroup driver that it
	// wants, "" if it does not say.
	name, version string
	driver        cgroup.Driver
}

// dialCRI makes a connection to a runtime's socket; nothing is sent yet. Calls
// fail at once while nobody listens, and find a runtime that has come back
// within seconds.
func dialCRI(endpoint string) (*grpc.ClientConn, error) {
	if !strings.HasPrefix(endpoint, "unix:///") {
		return nil, fmt.Errorf("the container runtime endpoint %q is not of the form unix:///path", endpoint)
	}
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxCRIMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redial},
			MinConnectTimeout: askTime,
		}))
	if err != nil {
		return nil, fmt.Errorf("connect to the container runtime %s: %w", endpoint, err)
	}
	return conn, nil
}

// ask asks the runtime who it is and which cgroup driver it wants.
func (x *external) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	c := runtimeapi.NewRuntimeServiceClient(x.conn)
	v, err := c.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return err
	}
	x.name, x.version = v.RuntimeName, v.RuntimeVersion
	r, err := c.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil // KEP-4033 is younger than it
	}
	if err != nil {
		return err
	}
	x.driver = map[runtimeapi.CgroupDriver]cgroup.Driver{
		runtimeapi.CgroupDriver_SYSTEMD: cgroup.Systemd, runtimeapi.CgroupDriver_CGROUPFS: cgroup.Cgroupfs,
	}[r.GetLinux().GetCgroupDriver()]
	return nil
}

// connect waits until the runtime that o.Endpoint names answers, if there is one
// to wait for. Meanwhile whoever asks the agent is told that, and since when.
func (n *node) connect(ctx context.Context, listening func()) error {
	if n.o.Endpoint == "" {
		return nil
	}
	conn, err := dialCRI(n.o.Endpoint)
	if err != nil {
		return err
	}
	n.conn, n.external = conn, &external{conn: conn}
	if err := n.external.ask(ctx); err != nil {
		if err := n.waitForRuntime(ctx, err, listening); err != nil {
			return err
		}
	}
	n.o.Log.Info("container runtime found", "endpoint", n.o.Endpoint, "name", n.external.name, "version", n.external.version, "cgroupDriver", n.external.driver)
	return nil
}

// waitForRuntime asks again and again, and answers for the agent meanwhile.
func (n *node) waitForRuntime(ctx context.Context, silent error, listening func()) error {
	since := time.Now()
	var mu sync.Mutex // of silent
	why := func() string {
		mu.Lock()
		defer mu.Unlock()
		return waiting(n.o.Endpoint, since, silent)
	}
	if err := prepareDirs(n.o); err != nil {
		return err
	}
	n.o.Log.Warn("the container runtime does not answer; waiting for it", "endpoint", n.o.Endpoint, "error", silent)
	api := server.NewWaiting(server.Config{Version: n.version(since), Listening: listening, Log: n.o.Log}, why)
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- api.Serve(serving, n.o.Socket) }()
	for {
		select {
		case <-ctx.Done():
			stop()
			<-served
			return ctx.Err()
		case failed := <-served:
			stop()
			return failed // another agent has the socket
		case <-time.After(askEvery):
		}
		again := n.external.ask(ctx)
		if again == nil {
			stop()
			return <-served
		}
		mu.Lock()
		silent = again
		mu.Unlock()
	}
}

// waiting says, to whoever asks, what the agent waits for.
func waiting(endpoint string, since time.Time, err error) string {
	return fmt.Sprintf("the container runtime %s does not answer since %s (%s); what the agent knows of pods it tells as soon as the runtime does. %s",
		endpoint, since.Format(time.DateTime), status.Convert(err).Message(), plan.Advise(plan.Trouble{Op: pod.OpObserve}))
}

// systemdDriver tells whether systemd makes the pods' cgroups. An external
// runtime knows better than the configuration: it makes those of the containers.
func (n *node) systemdDriver() bool {
	x := n.external
	if x == nil || x.driver == "" {
		return systemdCgroups(n.o)
	}
	if want := n.o.CgroupDriver; want != "" && want != string(x.driver) {
		n.o.Log.Warn("the container runtime has another cgroup driver than is configured: the runtime's is used", "configured", want, "runtime", x.driver)
	}
	return x.driver == cgroup.Systemd
}

// runtimeName is what IDs of containers begin with in statuses.
func (n *node) runtimeName() string {
	if n.external != nil && n.external.name != "" {
		return n.external.name
	}
	return berth
}
