package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/cri/label"
	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/cri/ocispec"
	"github.com/berthd/berth/cri/record"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CreateRequest is what a container is made of.
type CreateRequest struct {
	Config *runtimeapi.ContainerConfig
	// Pod is the sandbox's configuration: its metadata and log directory.
	Pod *runtimeapi.PodSandboxConfig
	// Sandbox is what the sandbox offers. Its namespace paths must stay valid
	// until Create returns.
	Sandbox ocispec.Sandbox
	// Handler is the sandbox's runtime handler.
	Handler string
	// Labels are the sandbox's SELinux labels, whose level the container shares.
	Labels label.Labels
	Image  Image
	// ImageConfig is the image's own configuration.
	ImageConfig imagespec.ImageConfig
}

// Create makes a container, to be started by Start, and returns its ID. If it
// fails nothing is left, or, if even that fails, the next Restore removes it.
//
// A fault of the container itself that only the runtime can find (its command
// is missing) does not fail Create: Start tells it.
func (s *Store) Create(ctx context.Context, req CreateRequest) (string, error) {
	req.Config = settledConfig(req)
	id := record.NewID()
	if err := s.names.Reserve(name(req.Pod.GetMetadata(), req.Config.GetMetadata()), id); err != nil {
		return "", err
	}
	c, err := s.begin(id, req)
	if err != nil {
		s.names.Release(id)
		return "", err
	}
	err = s.build(ctx, c, req)
	if err == nil {
		c.unlock()
		s.event(Created, c)
		return id, nil
	}
	defer c.unlock()
	// The caller may be gone already; the way down must be walked all the same.
	down, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if downErr := s.teardown(down, c); downErr != nil {
		s.names.Release(id) // what is left has been told to nobody, and must not bar the next try
		s.cfg.Log.Error("half-made container cannot be removed now; the next start of the agent tries again",
			"container", id, "err", downErr)
	}
	return "", err
}

// settledConfig is the container's configuration with what it leaves open: the
// signal that stops it is the image's, its namespaces are those of the sandbox.
func settledConfig(req CreateRequest) *runtimeapi.ContainerConfig {
	sig := ParseSignal(req.ImageConfig.StopSignal)
	openSignal := sig != 0 && req.Config.GetStopSignal() == runtimeapi.Signal_RUNTIME_DEFAULT
	pod := req.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	openNamespaces := pod != nil && req.Config.GetLinux().GetSecurityContext().GetNamespaceOptions() == nil
	if !openSignal && !openNamespaces {
		return req.Config
	}
	cfg := proto.CloneOf(req.Config)
	if openSignal {
		cfg.StopSignal = sig
	}
	if openNamespaces {
		if cfg.Linux == nil {
			cfg.Linux = &runtimeapi.LinuxContainerConfig{}
		}
		if cfg.Linux.SecurityContext == nil {
			cfg.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{}
		}
		cfg.Linux.SecurityContext.NamespaceOptions = proto.CloneOf(pod)
	}
	return cfg
}

// begin puts the container on record, locked.
func (s *Store) begin(id string, req CreateRequest) (*container, error) {
	cfg, err := proto.Marshal(req.Config)
	if err != nil {
		return nil, fmt.Errorf("encoding the container's configuration: %w", err)
	}
	pod, err := proto.Marshal(req.Pod.GetMetadata())
	if err != nil {
		return nil, fmt.Errorf("encoding the pod's metadata: %w", err)
	}
	c, err := newContainer(id, Record{
		SandboxID: req.Sandbox.ID, Handler: s.settled(req.Handler), Config: cfg, Pod: pod, Image: req.Image, CreatedAt: time.Now(),
		CgroupsPath: ocispec.CgroupsPath(s.cfg.Host.SystemdCgroup, req.Sandbox.CgroupParent, id),
	})
	if err != nil {
		return nil, err
	}
	c.op <- struct{}{}
	if err := s.records.Write(id, c.rec); err != nil {
		return nil, errors.Join(err, s.records.Remove(id))
	}
	s.mu.Lock()
	s.containers.add(c)
	s.mu.Unlock()
	return c, nil
}

// build makes everything the record announces.
func (s *Store) build(ctx context.Context, c *container, req CreateRequest) error {
	rootfs := s.rootfs(c.id)
	failpoint.Hit("cri/container/mkdir")
	for _, dir := range []string{rootfs, s.bundle(c.id)} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("making the directories of container %s: %w", c.id, err)
		}
	}
	var err error
	if req.Labels, err = s.cfg.Labels.ForContainer(req.Labels, req.Config.GetLinux().GetSecurityContext()); err != nil {
		return err
	}
	users := req.Sandbox.Users
	if users.NS != "" {
		if err := s.openTo(c.id, users); err != nil {
			return err
		}
	}
	failpoint.Hit("cri/container/mount-rootfs")
	if err := s.cfg.Rootfs.MountRootfs(ctx, RootfsMount{ID: c.id, Image: req.Image.ID, Target: rootfs, Users: users, Label: req.Labels.Mount}); err != nil {
		return fmt.Errorf("mounting the root filesystem of container %s: %w", c.id, err)
	}
	failpoint.Hit("cri/container/mount-rootfs-done")
	return s.conceive(ctx, c, req)
}

// conceive lets the monitor make the container's first process, and completes
// the record.
func (s *Store) conceive(ctx context.Context, c *container, req CreateRequest) error {
	bundle, users := s.bundle(c.id), req.Sandbox.Users
	user, profile, err := s.writeSpec(ctx, c, req)
	if err != nil {
		return err
	}
	logPath, err := openLog(req.Pod.GetLogDirectory(), req.Config.GetLogPath())
	if err != nil {
		return err
	}
	rt := s.runtime(Record{Handler: req.Handler})
	mc := monitor.Container{
		Runtime: rt, ID: c.id, Name: req.Config.GetMetadata().GetName(), Bundle: bundle, PersistDir: bundle, LogPath: logPath,
		Terminal: req.Config.GetTty(), Stdin: req.Config.GetStdin(), StdinOnce: req.Config.GetStdinOnce(),
		Recorded: func(conmon monitor.Identity) error {
			_, err := s.update(c, func(r *Record) bool {
				r.Monitor, r.User, r.LogPath, r.HostUser = conmon, user, logPath, hostUser(user, users)
				return true
			})
			return err
		},
	}
	initID, err := s.cfg.Monitor.Create(ctx, mc)
	var fault *ociruntime.Error
	failure, code := "", int32(0)
	switch {
	case errors.As(err, &fault) && fault.OfContainer():
		failure, code = fault.Message, startCode(fault)
	case err != nil:
		return err
	default:
		if err := s.doubtCreated(c, rt, initID); err != nil {
			return err
		}
		s.filters.keep(profile, rt, c.id)
		if users.NS != "" {
			if err := giveStreams(initID, *hostUser(user, users)); err != nil {
				return err
			}
		}
	}
	if err := s.unstageBinds(c.id); err != nil {
		return err
	}
	_, err = s.update(c, func(r *Record) bool {
		r.Init, r.StartFailure, r.StartCode, r.Complete = initID, failure, code, true
		return true
	})
	return err
}

// writeSpec gathers the facts, builds the OCI specification and leaves it in
// the bundle where the monitor takes it.
func (s *Store) writeSpec(ctx context.Context, c *container, req CreateRequest) (ocispec.User, profileKey, error) {
	in, err := s.gather(ctx, c, req)
	if err != nil {
		return in.User, profileKey{}, err
	}
	res, err := ocispec.Build(in)
	if err != nil {
		return in.User, profileKey{}, kinded(err)
	}
	for _, note := range res.Notes {
		if _, said := s.said.LoadOrStore(note, true); !said {
			s.cfg.Log.Warn(note)
		}
	}
	if err := s.injectDevices(c, in, res.Spec); err != nil {
		return in.User, profileKey{}, err
	}
	profile, filter := s.filters.find(res.Spec.Linux.Seccomp)
	ocispec.CompiledSeccomp(res.Spec, filter)
	b, err := json.Marshal(res.Spec)
	if err != nil {
		return in.User, profile, fmt.Errorf("encoding the specification of container %s: %w", c.id, err)
	}
	failpoint.Hit("cri/container/write-spec")
	if err := os.WriteFile(filepath.Join(s.bundle(c.id), monitor.NextConfig), b, 0o600); err != nil {
		return in.User, profile, fmt.Errorf("writing the specification of container %s: %w", c.id, err)
	}
	return in.User, profile, nil
}

// kinded gives errors of ocispec the kind that the server maps.
func kinded(err error) error {
	switch {
	case errors.Is(err, ocispec.ErrInvalid):
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	case errors.Is(err, ocispec.ErrUnsupported):
		return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	return err
}
