package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/hostgroup"
)

// side is one CRI runtime with everything of its own: directories, network,
// cgroup, socket.
type side struct {
	name   string
	home   string // everything of the side lies below it
	number int    // tells its bridge and its range of addresses
	cgroup string // parent of its pods' cgroups
	kind   runtimeKind

	program *exec.Cmd
	conn    *grpc.ClientConn
	cri     runtimeapi.RuntimeServiceClient
}

// runtimeKind is what differs between the sides.
type runtimeKind interface {
	// command starts the runtime; it is to listen on s.socket().
	command(s *side) ([]string, error)
	// load brings the images of archive into the running runtime.
	load(ctx context.Context, s *side, archive string) error
	// programs are the base names of its own processes, workloads left out.
	programs() []string
	// clean removes what is left when the runtime has ended.
	clean(s *side) error
}

func newSide(name, work string, number int, kind runtimeKind) *side {
	home := filepath.Join(work, fmt.Sprintf("s%d", number))
	return &side{name: name, home: home, number: number, kind: kind, cgroup: "/" + filepath.Base(work) + fmt.Sprintf("-s%d", number)}
}

func (s *side) socket() string { return s.home + "/run/cri.sock" }
func (s *side) stamps() string { return s.home + "/stamps" }
func (s *side) bridge() string { return fmt.Sprintf("cribench%d", s.number) }

// network is the same for every side but for the names and the range. Without
// ipMasq it is what Berth's default network consists of.
func (s *side) network() string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"cribench%[1]d","plugins":[
 {"type":"bridge","bridge":"cribench%[1]d","isGateway":true,"ipMasq":%[3]v,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"10.23%[1]d.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"%[2]s/run/addresses"}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
`, s.number, s.home, *masq)
}

// up starts the runtime on empty directories and loads the images.
func (s *side) up(ctx context.Context, archive string) error {
	for _, d := range []string{"/run", "/cni", "/stamps", "/log", "/files"} {
		if err := os.MkdirAll(s.home+d, 0o755); err != nil {
			return err
		}
	}
	// As /run on most machines: what is boot-scoped lies in memory, on every side.
	if err := unix.Mount("tmpfs", s.home+"/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount the state's tmpfs: %w", err)
	}
	if err := os.WriteFile(s.home+"/cni/10-bench.conflist", []byte(s.network()), 0o644); err != nil {
		return err
	}
	for _, f := range []string{"/files/hosts", "/files/termination-log"} {
		if err := os.WriteFile(s.home+f, nil, 0o666); err != nil {
			return err
		}
	}
	if err := hostgroup.Make(s.cgroup); err != nil {
		return err
	}
	args, err := s.kind.command(s)
	if err != nil {
		return err
	}
	log, err := os.Create(s.home + "/log.txt")
	if err != nil {
		return err
	}
	defer log.Close()
	s.program = exec.Command(args[0], args[1:]...)
	s.program.Stdout, s.program.Stderr = log, log
	s.program.Env = append(os.Environ(), "PATH="+*peer+":"+os.Getenv("PATH"))
	s.program.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.program.Start(); err != nil {
		return fmt.Errorf("start %s: %w", args[0], err)
	}
	if s.conn, err = grpc.NewClient("unix://"+s.socket(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return err
	}
	s.cri = runtimeapi.NewRuntimeServiceClient(s.conn)
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		st, err := s.cri.Status(ctx, &runtimeapi.StatusRequest{})
		if err == nil && ready(st.GetStatus().GetConditions()) {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("the runtime did not become ready within a minute: %v, %v\n%s", err, st.GetStatus(), s.logTail())
		}
	}
	return s.kind.load(ctx, s, archive)
}

// ready tells whether the conditions that every runtime has are true.
func ready(conditions []*runtimeapi.RuntimeCondition) bool {
	met := 0
	for _, c := range conditions {
		if t := c.GetType(); c.GetStatus() && (t == runtimeapi.RuntimeReady || t == runtimeapi.NetworkReady) {
			met++
		}
	}
	return met == 2
}

// down removes every pod, ends the runtime, and takes away what is left.
func (s *side) down() error {
	if s.program == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	errs := []error{s.removeAll(ctx)}
	errs = append(errs, s.conn.Close(), s.program.Process.Signal(syscall.SIGTERM))
	ended := make(chan struct{})
	go func() { _ = s.program.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		errs = append(errs, fmt.Errorf("%s did not end on SIGTERM", s.name), s.program.Process.Kill())
		<-ended
	}
	s.program = nil
	errs = append(errs, s.kind.clean(s))
	_ = exec.Command("ip", "link", "delete", s.bridge()).Run()
	for unix.Unmount(s.home+"/run", unix.MNT_DETACH) == nil {
		continue // the runtime may have mounted one more
	}
	return errors.Join(append(errs, hostgroup.Remove(s.cgroup))...)
}

// removeAll removes every sandbox of the side with its containers.
func (s *side) removeAll(ctx context.Context) error {
	list, err := s.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range list.GetItems() {
		_, err := s.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.GetId()})
		errs = append(errs, err)
		_, err = s.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.GetId()})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *side) logTail() string {
	body, _ := os.ReadFile(s.home + "/log.txt")
	lines := strings.Split(strings.TrimSpace(string(body)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
