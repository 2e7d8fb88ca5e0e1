package ocispec

import (
	"errors"
	"fmt"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrInvalid marks a request that cannot become a container until it is
// changed. Errors of Build wrap it, or ErrUnsupported.
var ErrInvalid = errors.New("invalid container configuration")

// ErrUnsupported marks a request that this host, not the request, stands against.
var ErrUnsupported = errors.New("not supported by this host")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}

// Input is everything that a specification depends on.
type Input struct {
	// ID is the container's ID; it names its cgroup.
	ID string
	// Rootfs is the absolute path of the mounted root filesystem.
	Rootfs string
	// Config is the container as CRI describes it. Host paths of its mounts
	// have had their symbolic links resolved.
	Config *runtimeapi.ContainerConfig
	// Sandbox is what the pod sandbox gives to its containers.
	Sandbox Sandbox
	// Image is the image's own configuration.
	Image imagespec.ImageConfig
	// User is who the container runs as, from ResolveUser.
	User User
	// Devices are the host devices of Config.Devices, or, for a privileged
	// container, all of the host's.
	Devices []Device
	// TargetPIDNamespace is the path of the PID namespace of the container
	// that NamespaceMode TARGET names.
	TargetPIDNamespace string
	// Keep lists options, by source, that a bind mount has to keep: those of an
	// image volume, and those that the root of a user namespace may not lift.
	Keep map[string][]string
	// LocalSeccomp is the parsed profile when a Localhost one is asked for.
	LocalSeccomp *specs.LinuxSeccomp
	// ProcessLabel and MountLabel are SELinux labels; empty without SELinux.
	ProcessLabel, MountLabel string
	// Annotations are those that the runtime handler may see of the pod's and the
	// container's. All others are kept from the runtime.
	Annotations map[string]string
	// Rlimits are the limits wanted; they are clamped to what the host allows.
	Rlimits []specs.POSIXRlimit
	// Host is what the machine can and grants.
	Host Host
}

// Sandbox is what a pod sandbox gives to its containers. Empty namespace paths
// mean the host's namespace.
type Sandbox struct {
	ID           string
	Name         string
	Namespace    string
	UID          string
	Hostname     string
	CgroupParent string // cgroupfs: absolute path; systemd: a slice, with or without its path

	NetworkNS, IPCNS, UTSNS, PIDNS string
	// Users is its own user namespace.
	Users Users

	// Files that are mounted into each container unless the container brings
	// its own; empty ones are left out.
	ShmPath, HostsPath, HostnamePath, ResolvConfPath string
}

// Users is a user namespace with its mapping; zero is the host's.
type Users struct {
	NS         string // its path
	UIDs, GIDs IDRange
	// Untold keeps the mapping out of the specification: the runtime finds it in
	// the namespace.
	Untold bool
}

// IDRange maps the IDs 0 to Length-1 of a user namespace to the host's from Host on.
type IDRange struct{ Host, Length uint32 }

// Device is a device node of the host.
type Device struct {
	Path         string // in the container
	HostPath     string
	Type         string // "c" or "b"
	Major, Minor int64
	Mode         uint32 // permission bits
	UID, GID     uint32
	Permissions  string // of the device cgroup: a subset of "rwm"
}

// Host is what the machine can and what it grants to us.
type Host struct {
	CgroupV2      bool
	SystemdCgroup bool
	// Controllers holds the cgroup controllers that exist.
	Controllers map[string]bool
	// SwapAccounting says that memory+swap can be limited.
	SwapAccounting bool
	// HugePageSizes are the sizes in the CRI's spelling, such as "2MB".
	HugePageSizes []string
	// Capabilities is our bounding set: no container can get more.
	Capabilities []string
	// OOMScoreAdj is our own; without CanLowerOOMScore (CAP_SYS_RESOURCE) no
	// container can have a lower one.
	OOMScoreAdj      int
	CanLowerOOMScore bool
	// HardRlimits are our own hard limits, by name; without CanRaiseRlimits no
	// container can have higher ones.
	HardRlimits     map[string]uint64
	CanRaiseRlimits bool
	// RecursiveReadOnly says that the kernel and the runtime can make a bind
	// mount read-only with everything below it.
	RecursiveReadOnly bool
	AppArmor          bool
	// AppArmorDefault is the loaded profile that RuntimeDefault stands for.
	AppArmorDefault string
	Seccomp         bool
}

// Result is what Build makes.
type Result struct {
	Spec *specs.Spec
	// Notes says, one sentence each, what was asked for and left out because
	// the host does not grant it. Each is worth saying once, not per container.
	Notes []string
}

// notes collects sentences without repeating one.
type notes []string

func (n *notes) add(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	for _, have := range *n {
		if have == s {
			return
		}
	}
	*n = append(*n, s)
}
