package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/berthd/berth/cri/label"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/record"
	"github.com/berthd/berth/cri/sandbox/internal/podinit"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// creation is a validated request.
type creation struct {
	config   *runtimeapi.PodSandboxConfig
	modes    modes
	hostname string
	resolv   string
	sysctls  []podinit.Setting
	users    UserNamespace
	labels   label.Labels
}

// Run makes a sandbox and returns its ID. config is kept: it must not change
// any more. What a failed Run has made is removed before it returns; if that
// fails too, the sandbox stays, not ready, for Remove. The error is an
// errdefs.ErrAlreadyExists if another sandbox has the same name, namespace, UID
// and attempt, and errdefs.ErrInvalidArgument if config cannot be.
func (s *Store) Run(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (ID, error) {
	c, err := validate(config)
	if err != nil {
		return "", err
	}
	id := ID(record.NewID())
	if err := s.names.Reserve(fullName(config.GetMetadata()), string(id)); err != nil {
		return "", fmt.Errorf("creating a sandbox: %w", err)
	}
	b := newBox(id)
	b.config, b.creating, b.created, b.podUID = config, true, time.Now().Round(0), config.GetLabels()[podUID]
	b.busy <- struct{}{}
	defer b.give()
	s.mu.Lock()
	s.boxes.add(b)
	s.mu.Unlock()

	err = s.create(ctx, b, c, handler)
	if err != nil {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		if undone := s.remove(cleanup, b); undone != nil {
			s.names.Release(string(id)) // the name is for the next try; what is left waits for Remove
			err = fmt.Errorf("%w (and sandbox %s, half made, cannot be removed yet: %w)", err, id, undone)
		}
		id = ""
	}
	b.mu.Lock()
	b.creating = false
	b.mu.Unlock()
	s.cfg.OnChange(b.id)
	return id, err
}

// validate refuses what can never work, before anything exists.
func validate(config *runtimeapi.PodSandboxConfig) (creation, error) {
	c := creation{config: config, modes: modesOf(config)}
	m := config.GetMetadata()
	if m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "" {
		return c, fmt.Errorf("sandbox metadata must have name, namespace and UID: %w", errdefs.ErrInvalidArgument)
	}
	ns := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	for what, mode := range map[string]runtimeapi.NamespaceMode{"network": ns.GetNetwork(), "IPC": ns.GetIpc(), "PID": ns.GetPid()} {
		if mode == runtimeapi.NamespaceMode_TARGET || mode == runtimeapi.NamespaceMode_CONTAINER && what != "PID" {
			return c, fmt.Errorf("namespace mode %s is not possible for the %s namespace of a sandbox: %w", mode, what, errdefs.ErrInvalidArgument)
		}
	}
	var err error
	if c.users, err = UserNamespaceOf(ns.GetUsernsOptions()); err == nil {
		err = checkUsers(c.modes)
	}
	if err != nil {
		return c, err
	}
	if err := checkCgroupParent(config.GetLinux().GetCgroupParent()); err != nil {
		return c, err
	}
	if err := checkNetwork(config); err != nil {
		return c, err
	}
	if c.hostname, err = hostname(config, c.modes); err != nil {
		return c, err
	}
	if c.resolv, err = resolvConf(config.GetDnsConfig()); err != nil {
		return c, err
	}
	c.sysctls, err = sysctls(config.GetLinux().GetSysctls(), c.modes)
	return c, err
}

func (s *Store) create(ctx context.Context, b *box, c creation, handler string) error {
	raw, err := protojson.Marshal(c.config)
	if err != nil {
		return fmt.Errorf("encoding the sandbox configuration: %w", err)
	}
	if c.labels, err = s.cfg.Labels.ForPod(c.config.GetLinux().GetSecurityContext().GetSelinuxOptions()); err != nil {
		return err
	}
	err = s.write(b, func(r *state) { *r = state{Config: raw, Handler: handler, CreatedAt: b.created, Labels: c.labels} })
	if err != nil {
		return err
	}
	if err := makeFiles(s.dir.Path(string(b.id)), c); err != nil {
		return err
	}
	if err := s.labelFiles(s.dir.Path(string(b.id)), c); err != nil {
		return err
	}
	ips, err := s.populate(ctx, b, c)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.pinned = true
	b.mu.Unlock()
	return s.write(b, func(r *state) { r.IPs, r.Complete = ips, true })
}

// populate makes the namespaces, and all that lives in them.
func (s *Store) populate(ctx context.Context, b *box, c creation) (ips []string, err error) {
	kinds := c.modes.kinds()
	if len(kinds) == 0 {
		return nil, nil
	}
	o := podinit.Options{Clone: cloneFlags(kinds), Loopback: !c.modes.hostNet, Sysctls: c.sysctls, Stay: c.modes.sharedPID,
		UIDs: c.users.UIDs.sys(), GIDs: c.users.GIDs.sys()}
	if !c.modes.hostNet {
		o.Hostname = c.hostname
	}
	init, err := podinit.Start(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, init.Abandon()) }()
	if err := s.cfg.Pins.Pin(init.PID, kinds, string(b.id)); err != nil {
		return nil, err
	}
	if c.modes.sharedPID {
		if err := s.placeInit(b, c, init); err != nil {
			return nil, err
		}
	}
	if !c.modes.hostNet {
		if ips, err = s.attach(ctx, b); err != nil {
			return nil, err
		}
	}
	if err := init.Go(ctx); err != nil {
		var refused *podinit.SysctlError
		if errors.As(err, &refused) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		return nil, err
	}
	if c.modes.sharedPID {
		return ips, s.adopt(b, init.FD, init.Wait)
	}
	return ips, nil
}

// placeInit records the init that will stay, after its cgroup: what is recorded
// is what removal looks for.
func (s *Store) placeInit(b *box, c creation, init *podinit.Init) error {
	p, err := identify(init.PID)
	if err != nil {
		return err
	}
	if err := s.write(b, func(r *state) { r.Init = &p }); err != nil {
		return err
	}
	m, err := initCgroup(c.config.GetLinux().GetCgroupParent(), b.id, s.cfg.SystemdCgroup)
	if err != nil {
		return err
	}
	return enterCgroup(m, init.PID)
}

// adopt watches b's init, which is alive. collect, if not nil, reaps it.
func (s *Store) adopt(b *box, pidfd int, collect func() error) error {
	b.mu.Lock()
	b.alive = true
	b.mu.Unlock()
	w, err := newWatch(pidfd, &s.wg, func() {
		if collect != nil {
			if err := collect(); err != nil {
				s.cfg.Log.Warn("collecting a pod's init", "sandbox", b.id, "err", err)
			}
		}
		b.mu.Lock()
		b.alive = false
		expected := b.rec.Stopped
		b.mu.Unlock()
		if !expected {
			s.cfg.Log.Warn("the init of a shared PID namespace has ended: the sandbox is not ready any more", "sandbox", b.id)
		}
		s.cfg.OnChange(b.id)
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.watch = w
	b.mu.Unlock()
	return nil
}

func (s *Store) attach(ctx context.Context, b *box) ([]string, error) {
	r, closeNS, err := s.request(b)
	if err != nil {
		return nil, err
	}
	defer closeNS()
	failpoint.Hit("cri/sandbox/network-add")
	result, err := s.cfg.Network.Add(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("attaching sandbox %s to the network: %w", b.id, err)
	}
	failpoint.Hit("cri/sandbox/network-add-done")
	return result.IPs, nil
}

// request describes b to the network. The path in it is good until the returned
// function is called.
func (s *Store) request(b *box) (Request, func(), error) {
	_, c := b.snapshot()
	m := c.GetMetadata()
	r := Request{
		SandboxID: string(b.id), Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(),
		Annotations: c.GetAnnotations(), CgroupParent: c.GetLinux().GetCgroupParent(),
	}
	for _, p := range c.GetPortMappings() {
		if p.GetHostPort() > 0 {
			r.PortMappings = append(r.PortMappings, PortMapping{
				Protocol: strings.ToLower(p.GetProtocol().String()), ContainerPort: p.GetContainerPort(),
				HostPort: p.GetHostPort(), HostIP: p.GetHostIp(),
			})
		}
	}
	r.Bandwidth, _ = bandwidth(c.GetAnnotations()) // checked before anything was made
	if d := c.GetDnsConfig(); d != nil {
		r.DNS = DNS{Servers: d.GetServers(), Searches: d.GetSearches(), Options: d.GetOptions()}
	}
	f, err := s.cfg.Pins.Open(string(b.id), mountns.Net)
	if errdefs.IsNotFound(err) {
		return r, func() {}, nil
	}
	if err != nil {
		return r, nil, err
	}
	r.NetNS = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	return r, func() { f.Close() }, nil
}

func cloneFlags(kinds []mountns.Kind) (flags uintptr) {
	for _, k := range kinds {
		flags |= map[mountns.Kind]uintptr{
			mountns.Net: unix.CLONE_NEWNET, mountns.UTS: unix.CLONE_NEWUTS, mountns.IPC: unix.CLONE_NEWIPC,
			mountns.PID: unix.CLONE_NEWPID, mountns.User: unix.CLONE_NEWUSER,
		}[k]
	}
	return flags
}
