package ocispec

import (
	"fmt"
	"maps"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// specVersion is the version of the OCI specification that crun 1.8 and runc
// 1.1 both speak; later ones add only what is not used here.
const specVersion = "1.0.2"

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Build makes the specification. Errors wrap ErrInvalid or ErrUnsupported.
func Build(in Input) (Result, error) {
	var n notes
	sec := in.Config.GetLinux().GetSecurityContext()
	args, err := processArgs(in)
	if err != nil {
		return Result{}, err
	}
	cwd, err := workingDir(in)
	if err != nil {
		return Result{}, err
	}
	if err := checkEnvironment(in); err != nil {
		return Result{}, err
	}
	spec := &specs.Spec{
		Version:  specVersion,
		Root:     &specs.Root{Path: in.Rootfs, Readonly: sec.GetReadonlyRootfs()},
		Hostname: "", // the sandbox's UTS namespace has it
		Process: &specs.Process{
			Terminal:        in.Config.GetTty(),
			User:            specs.User{UID: in.User.UID, GID: in.User.GID, AdditionalGids: in.User.Groups},
			Args:            args,
			Env:             environment(in),
			Cwd:             cwd,
			NoNewPrivileges: sec.GetNoNewPrivs(),
			SelinuxLabel:    in.ProcessLabel,
		},
		Linux:       &specs.Linux{MountLabel: in.MountLabel},
		Annotations: annotations(in),
	}
	for _, step := range []func(*specs.Spec, Input, *notes) error{
		setNamespaces, setCapabilities, setMounts, setDevices, setResources, setLimits, setProtections,
		setSeccomp, // reads the capabilities
	} {
		if err := step(spec, in, &n); err != nil {
			return Result{}, err
		}
	}
	return Result{Spec: spec, Notes: n}, nil
}

// processArgs joins command and arguments as Kubernetes does: a command of the
// pod replaces the image's entrypoint and its arguments; arguments alone
// replace only the image's arguments.
func processArgs(in Input) ([]string, error) {
	command, args := in.Config.GetCommand(), in.Config.GetArgs()
	if len(command) == 0 {
		command = in.Image.Entrypoint
		if len(args) == 0 {
			args = in.Image.Cmd
		}
	}
	all := make([]string, 0, len(command)+len(args))
	all = append(append(all, command...), args...)
	if len(all) == 0 || all[0] == "" {
		return nil, invalid("no command: neither the container nor its image names one; set command in the pod")
	}
	for _, a := range all {
		if strings.ContainsRune(a, 0) {
			return nil, invalid("an argument contains a NUL byte")
		}
	}
	return all, nil
}

// WorkingDir is where the first process begins, before links are followed: the
// container's choice, or else its image's.
func WorkingDir(in Input) string {
	dir := in.Config.GetWorkingDir()
	if dir == "" {
		dir = in.Image.WorkingDir
	}
	return path.Clean("/" + dir)
}

func workingDir(in Input) (string, error) {
	dir := WorkingDir(in)
	if strings.ContainsRune(dir, 0) {
		return "", invalid("the working directory contains a NUL byte")
	}
	return dir, CheckWorkingDir(dir)
}

// CheckWorkingDir refuses a process's own /proc directory and all in it: a
// descriptor that a runtime forgot to close must not become a way out
// (CVE-2024-21626), and nothing legitimate has its working directory there.
func CheckWorkingDir(dir string) error {
	rest, ok := strings.CutPrefix(dir, "/proc/")
	if !ok {
		return nil
	}
	first, _, _ := strings.Cut(rest, "/")
	if _, pid := number(first); pid || first == "self" || first == "thread-self" {
		return invalid("working directory %q lies in a process's own /proc directory", dir)
	}
	return nil
}

// checkEnvironment refuses what no process could be given.
func checkEnvironment(in Input) error {
	for _, kv := range in.Config.GetEnvs() {
		if k := kv.GetKey(); k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(string(kv.GetValue()), 0) {
			return invalid("environment variable %q has no proper name, or contains a NUL byte", k)
		}
	}
	return nil
}

// environment merges, each overriding the ones before: defaults, the image's,
// the container's. Order of first appearance is kept.
func environment(in Input) []string {
	var env []string
	at := map[string]int{}
	set := func(kv string) {
		key, _, _ := strings.Cut(kv, "=")
		if i, ok := at[key]; ok {
			env[i] = kv
			return
		}
		at[key] = len(env)
		env = append(env, kv)
	}
	set(defaultPath)
	if in.Config.GetTty() {
		set("TERM=xterm")
	}
	if in.Sandbox.Hostname != "" {
		set("HOSTNAME=" + in.Sandbox.Hostname)
	}
	if in.User.Home != "" {
		set("HOME=" + in.User.Home)
	}
	for _, kv := range in.Image.Env {
		if i := strings.IndexByte(kv, '='); i > 0 && !strings.ContainsRune(kv, 0) { // else it is none
			set(kv)
		}
	}
	for _, kv := range in.Config.GetEnvs() {
		set(kv.GetKey() + "=" + string(kv.GetValue()))
	}
	return env
}

// annotations are those that the handler may see, and ours, for people who read
// a bundle, which nothing overrides.
func annotations(in Input) map[string]string {
	a := maps.Clone(in.Annotations)
	if a == nil {
		a = map[string]string{}
	}
	maps.Copy(a, map[string]string{
		"io.kubernetes.cri.container-type":    "container",
		"io.kubernetes.cri.container-name":    in.Config.GetMetadata().GetName(),
		"io.kubernetes.cri.sandbox-id":        in.Sandbox.ID,
		"io.kubernetes.cri.sandbox-name":      in.Sandbox.Name,
		"io.kubernetes.cri.sandbox-namespace": in.Sandbox.Namespace,
		"io.kubernetes.cri.sandbox-uid":       in.Sandbox.UID,
	})
	if in.Host.SystemdCgroup {
		a["org.systemd.property.TimeoutStopUSec"] = fmt.Sprintf("uint64 %d", stopTime(in).Microseconds())
	}
	return a
}

// maxStop is how long systemd waits for a scope if nobody says otherwise.
const maxStop = 90 * time.Second

// stopTime is how long systemd, when the host goes down, waits for a container
// that does not end at SIGTERM: no longer than its pod is given at any other
// time. Most programs that are process 1 without a handler never end at it, and
// each reboot would take maxStop.
func stopTime(in Input) time.Duration {
	grace, err := strconv.ParseInt(in.Config.GetAnnotations()["io.kubernetes.pod.terminationGracePeriod"], 10, 32)
	if err != nil || grace < 0 {
		grace = 30 // the default of Kubernetes
	}
	return min(maxStop, max(time.Second, time.Duration(grace)*time.Second))
}

// setNamespaces joins the sandbox's namespaces. A namespace that should be the
// pod's and is not there is an error: silently using the host's would be an
// escape.
func setNamespaces(spec *specs.Spec, in Input, _ *notes) error {
	opts := in.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	add := func(t specs.LinuxNamespaceType, path string) {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	join := func(mode runtimeapi.NamespaceMode, t specs.LinuxNamespaceType, path string) error {
		switch {
		case mode == runtimeapi.NamespaceMode_NODE:
			return nil
		case mode != runtimeapi.NamespaceMode_POD:
			return invalid("namespace mode %s is not allowed for the %s namespace", mode, t)
		case path == "":
			return invalid("sandbox %s has no %s namespace to join", in.Sandbox.ID, t)
		}
		add(t, path)
		return nil
	}
	if u := in.Sandbox.Users; u.NS != "" {
		add(specs.UserNamespace, u.NS)
		if !u.Untold {
			spec.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: u.UIDs.Host, Size: u.UIDs.Length}}
			spec.Linux.GIDMappings = []specs.LinuxIDMapping{{HostID: u.GIDs.Host, Size: u.GIDs.Length}}
		}
	}
	add(specs.MountNamespace, "")
	if err := join(opts.GetNetwork(), specs.NetworkNamespace, in.Sandbox.NetworkNS); err != nil {
		return err
	}
	if err := join(opts.GetIpc(), specs.IPCNamespace, in.Sandbox.IPCNS); err != nil {
		return err
	}
	// The host name belongs to the network identity: CRI has no mode of its own for it.
	if in.Sandbox.UTSNS != "" {
		add(specs.UTSNamespace, in.Sandbox.UTSNS)
	} else if opts.GetNetwork() != runtimeapi.NamespaceMode_NODE {
		return invalid("sandbox %s has no uts namespace to join", in.Sandbox.ID)
	}
	switch opts.GetPid() {
	case runtimeapi.NamespaceMode_CONTAINER:
		add(specs.PIDNamespace, "")
	case runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_POD:
		if in.Sandbox.PIDNS == "" {
			return invalid("sandbox %s has no pid namespace to share", in.Sandbox.ID)
		}
		add(specs.PIDNamespace, in.Sandbox.PIDNS)
	case runtimeapi.NamespaceMode_TARGET:
		if in.TargetPIDNamespace == "" {
			return invalid("the target container %q of the pid namespace is not running", opts.GetTargetId())
		}
		add(specs.PIDNamespace, in.TargetPIDNamespace)
	default:
		return invalid("unknown pid namespace mode %s", opts.GetPid())
	}
	// Only an owner of the cgroup namespace may mount the tree.
	if in.Host.CgroupV2 && (!privileged(in) || in.Sandbox.Users.NS != "") {
		add(specs.CgroupNamespace, "")
	}
	return nil
}

func privileged(in Input) bool {
	return in.Config.GetLinux().GetSecurityContext().GetPrivileged()
}
