package image

import (
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/cri/snapshot"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ID identifies an image: the digest of its configuration, "sha256:<hex>".
type ID string

// Image is one stored image. It is not changed after it was handed out.
type Image struct {
	ID ID
	// RepoTags and RepoDigests are its names, "repository:tag" and
	// "repository@digest", in full ("docker.io/library/busybox:1").
	RepoTags    []string
	RepoDigests []string
	// Size is the number of bytes of manifest, configuration and compressed layers.
	Size int64
	// Config is what the image says of the containers made from it.
	Config ocispec.ImageConfig
	// UID is set when Config.User starts with a number, otherwise Username.
	UID      *int64
	Username string
	// Pinned images are not to be removed to free space.
	Pinned bool
}

// Auth are credentials; at most one form is set. See the CRI's AuthConfig.
type Auth struct {
	Username, Password string
	// Auth is base64 of "username:password".
	Auth string
	// ServerAddress limits the credentials to one registry when set.
	ServerAddress string
	IdentityToken string
	RegistryToken string
}

// Phase is what is being done to an image or a layer.
type Phase string

// The phases.
const (
	PhaseResolving   Phase = "resolving"
	PhaseReading     Phase = "reading"
	PhaseWaiting     Phase = "waiting"
	PhaseDownloading Phase = "downloading"
	PhaseUnpacking   Phase = "unpacking"
	PhaseVerifying   Phase = "verifying"
	PhaseDone        Phase = "done"
)

// Progress is how far a pull, import or verification is: a snapshot, not an
// increment. Bytes are compressed bytes; Total is 0 while unknown.
type Progress struct {
	Ref         string
	Phase       Phase
	Done, Total int64
	Layers      []LayerProgress
}

// LayerProgress is how far one layer is.
type LayerProgress struct {
	Digest      string
	Phase       Phase
	Done, Total int64
}

// Config is what a Store is opened with. Zero fields but Root take defaults.
type Config struct {
	// Root is the directory of the store; no ':' or ',' may be in its path.
	Root string
	// CertsDir holds <registry>/hosts.toml. Default: /etc/berth/certs.d, or
	// /etc/containerd/certs.d where the former does not exist.
	CertsDir string
	// Logger gets what nobody is returned; nil discards it.
	Logger *slog.Logger
	// UnpackMemory is what unpacking one layer may allocate (512 MiB).
	UnpackMemory int64
	// MaxParallelDownloads bounds downloads over all pulls (6), MaxParallelUnpacks unpacks (2).
	MaxParallelDownloads, MaxParallelUnpacks int
	// MaxImageSize bounds one image's compressed content and one archive (64 GiB).
	MaxImageSize int64
	// MaxLayerEntries and MaxLayerBytes bound one unpacked layer (2 million, 64 GiB).
	MaxLayerEntries, MaxLayerBytes int64
	// StallTimeout ends a pull that gets no byte (30 s); PullTimeout any pull (2 h).
	StallTimeout, PullTimeout time.Duration
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.CertsDir == "" {
		c.CertsDir = defaultCertsDir()
	}
	setDefault(&c.UnpackMemory, 512<<20)
	setDefault(&c.MaxParallelDownloads, 6)
	setDefault(&c.MaxParallelUnpacks, 2)
	setDefault(&c.MaxImageSize, 64<<30)
	setDefault(&c.MaxLayerEntries, 2_000_000)
	setDefault(&c.MaxLayerBytes, 64<<30)
	setDefault(&c.StallTimeout, 30*time.Second)
	setDefault(&c.PullTimeout, 2*time.Hour)
	return c
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (c Config) limits() snapshot.Limits {
	return snapshot.Limits{Entries: c.MaxLayerEntries, Bytes: c.MaxLayerBytes, Memory: c.UnpackMemory}
}

// splitUser takes the user from "user[:group]" of an image's configuration:
// a number becomes an UID, anything else a name, and so does a number that no
// user can have: containers of it are refused.
func splitUser(s string) (*int64, string) {
	user, _, _ := strings.Cut(s, ":")
	if user == "" {
		return nil, ""
	}
	if n, err := strconv.ParseUint(user, 10, 32); err == nil && n != math.MaxUint32 {
		uid := int64(n)
		return &uid, ""
	}
	return nil, user
}
