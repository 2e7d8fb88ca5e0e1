package probes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// maxOutput bounds what is read from a container's answer and kept of it.
const maxOutput = 10 << 10

// tries is how often a probe that cannot be made is tried before it is given up
// until its next period.
const tries = 3

// state is what one probe found.
type state int

const (
	success state = iota
	warning       // counts as success
	failure
	errored // could not be made: says nothing about the container, counts nowhere
)

// outcome is the state and what a person should know about it.
type outcome struct {
	state   state
	message string
}

func failed(format string, args ...any) outcome {
	return outcome{failure, clip(fmt.Sprintf(format, args...))}
}

func erred(err error) outcome { return outcome{errored, clip(err.Error())} }

func clip(s string) string {
	if len(s) > maxOutput {
		s = s[:maxOutput]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// dialing is what a network probe prepares at its first run and uses again. Only
// the run under way touches it.
type dialing struct {
	http    *httpTemplate
	address string
}

// carryOut makes the probe of t.
func (p *Prober) carryOut(ctx context.Context, d *dialing, t *Target) outcome {
	var found outcome
	for range tries {
		found = p.once(ctx, d, t)
		if found.state != errored || ctx.Err() != nil {
			break
		}
	}
	return found
}

func (p *Prober) once(ctx context.Context, d *dialing, t *Target) outcome {
	switch probe := t.Probe; {
	case probe.Exec != nil:
		return p.execProbe(ctx, t)
	case probe.HTTPGet != nil:
		return httpProbe(ctx, d, t)
	case probe.TCPSocket != nil:
		return tcpProbe(ctx, d, t)
	case probe.GRPC != nil:
		return grpcProbe(ctx, t)
	}
	return outcome{errored, "the probe has neither exec, httpGet, tcpSocket nor grpc"}
}

// execProbe runs the command in the container.
func (p *Prober) execProbe(ctx context.Context, t *Target) outcome {
	cmd := t.Probe.Exec.Command
	exit, output, err := p.cfg.Exec(ctx, t.ContainerID, cmd, t.timeout())
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return failed("command timed out: %q timed out after %v", strings.Join(cmd, " "), t.timeout())
	case err != nil:
		return erred(err)
	case exit != 0:
		return outcome{failure, clip(string(output[:min(len(output), maxOutput)]))}
	}
	return outcome{}
}

// tcpProbe opens a connection and closes it.
func tcpProbe(ctx context.Context, d *dialing, t *Target) outcome {
	if d.address == "" {
		port, err := resolvePort(t.Probe.TCPSocket.Port, t.Ports)
		if err != nil {
			return erred(err)
		}
		d.address = address(t.Probe.TCPSocket.Host, t.PodIP, port)
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout())
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", d.address)
	if err != nil {
		return failed("%v", err)
	}
	_ = conn.Close() // it was open: that is the answer
	return outcome{}
}

// dialer makes the connections of all probes. Lingering for at most a second
// bounds how many closed connections and conntrack entries a node full of
// probes leaves behind (kubernetes/kubernetes#89898).
var dialer = net.Dialer{
	KeepAlive: -1,
	Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			err = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1, Linger: 1})
		}); cerr != nil {
			return cerr
		}
		return err
	},
}

func address(host, podIP string, port int) string {
	if host == "" {
		host = podIP
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// resolvePort turns a port or a port's name into a number.
func resolvePort(port intstr.IntOrString, ports []v1.ContainerPort) (int, error) {
	n := port.IntValue()
	if port.Type == intstr.String {
		for i := range ports {
			if ports[i].Name == port.StrVal {
				n = int(ports[i].ContainerPort)
			}
		}
	}
	if n <= 0 || n > 65535 {
		return 0, fmt.Errorf("port %q of the probe is neither a number from 1 to 65535 nor the name of one of the container's ports", port.String())
	}
	return n, nil
}
