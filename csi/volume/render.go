package volume

import (
	"maps"
	"path"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

const (
	// maxObject is what one ConfigMap or Secret may hold: Kubernetes' own bound.
	maxObject = 1 << 20
	// maxPayload bounds one volume: items may repeat a key under many paths.
	maxPayload = 32 << 20
	// defaultMode is the API's default for defaultMode.
	defaultMode = 0o644
)

// File is one file of a rendered volume.
type File struct {
	Data []byte
	Mode uint32 // permission bits
}

// Payload is the content of a rendered volume: slash-separated relative path → file.
type Payload map[string]File

// Objects looks up what volumes are rendered from. Answers are immutable and come
// from memory: the calls neither block nor fail.
type Objects interface {
	ConfigMap(namespace, name string) (*v1.ConfigMap, bool)
	Secret(namespace, name string) (*v1.Secret, bool)
}

// Facts are what volumes of one pod are rendered from.
type Facts struct {
	Pod     *v1.Pod
	Objects Objects
	// Allocatable stands in for limits that a container does not set.
	Allocatable v1.ResourceList
}

// Render returns the content of v, which is Rendered. A missing object or key
// that is not optional is NotFound, in the kubelet's words.
func (f Facts) Render(v Volume) (Payload, error) {
	p := Payload{}
	var err error
	switch s := v.Source; v.Kind {
	case ConfigMap:
		err = f.configMap(p, s.ConfigMap.Name, projection{s.ConfigMap.Items, s.ConfigMap.DefaultMode, s.ConfigMap.Optional})
	case Secret:
		err = f.secret(p, s.Secret.SecretName, projection{s.Secret.Items, s.Secret.DefaultMode, s.Secret.Optional})
	case DownwardAPI:
		err = f.downward(p, s.DownwardAPI.Items, s.DownwardAPI.DefaultMode)
	case Projected:
		err = f.projected(p, s.Projected)
	default:
		err = invalid("a volume of kind %s has no content to render", v.Kind)
	}
	if err != nil {
		return nil, err
	}
	return p.clean()
}

// projection is how the keys of an object become files.
type projection struct {
	items    []v1.KeyToPath
	mode     *int32
	optional *bool
}

func (p projection) isOptional() bool { return p.optional != nil && *p.optional }

func modeOf(own, fallback *int32) uint32 {
	switch {
	case own != nil:
		return uint32(*own) & 0o777
	case fallback != nil:
		return uint32(*fallback) & 0o777
	}
	return defaultMode
}

func (f Facts) configMap(p Payload, name string, how projection) error {
	cm, ok := f.Objects.ConfigMap(f.Pod.Namespace, name)
	if !ok {
		if how.isOptional() {
			return nil
		}
		return notFound("configmap %q not found", name)
	}
	content := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		content[k] = []byte(v)
	}
	maps.Copy(content, cm.BinaryData)
	return project(p, content, how, object{"configmap", name, "configmap references non-existent config key"})
}

func (f Facts) secret(p Payload, name string, how projection) error {
	s, ok := f.Objects.Secret(f.Pod.Namespace, name)
	if !ok {
		if how.isOptional() {
			return nil
		}
		return notFound("secret %q not found", name)
	}
	content := s.Data
	if len(s.StringData) > 0 { // a Secret that never passed through an API server
		content = maps.Clone(s.Data)
		if content == nil {
			content = map[string][]byte{}
		}
		for k, v := range s.StringData {
			content[k] = []byte(v)
		}
	}
	return project(p, content, how, object{"secret", name, "references non-existent secret key"})
}

// object names what is projected, for errors.
type object struct{ kind, name, missingKey string }

func project(p Payload, content map[string][]byte, how projection, of object) error {
	total := 0
	for _, v := range content {
		total += len(v)
	}
	if total > maxObject {
		return invalid("%s %q holds %d bytes; at most %d are allowed", of.kind, of.name, total, maxObject)
	}
	if len(how.items) == 0 {
		for k, v := range content {
			p[k] = File{Data: v, Mode: modeOf(nil, how.mode)}
		}
		return nil
	}
	for _, item := range how.items {
		v, ok := content[item.Key]
		if !ok {
			if how.isOptional() {
				continue
			}
			return notFound("%s: %s (in %s %q)", of.missingKey, item.Key, of.kind, of.name)
		}
		p[item.Path] = File{Data: v, Mode: modeOf(item.Mode, how.mode)}
	}
	return nil
}

// projected renders all sources into p, a later one over an earlier. Sources that
// an API server issues (tokens, trust bundles, certificates) are each one case
// here: what issues them will come with Facts, as Objects does.
func (f Facts) projected(p Payload, s *v1.ProjectedVolumeSource) error {
	var failed []error
	for i := range s.Sources {
		var err error
		switch src := &s.Sources[i]; {
		case src.ConfigMap != nil:
			err = f.configMap(p, src.ConfigMap.Name, projection{src.ConfigMap.Items, s.DefaultMode, src.ConfigMap.Optional})
		case src.Secret != nil:
			err = f.secret(p, src.Secret.Name, projection{src.Secret.Items, s.DefaultMode, src.Secret.Optional})
		case src.DownwardAPI != nil:
			err = f.downward(p, src.DownwardAPI.Items, s.DefaultMode)
		case src.ServiceAccountToken != nil:
			err = invalid("serviceAccountToken needs an API server that issues tokens, and this node has none; remove the projection, or put a token into a Secret")
		case src.ClusterTrustBundle != nil:
			err = invalid("clusterTrustBundle needs an API server, and this node has none; put the certificates into a ConfigMap")
		case src.PodCertificate != nil:
			err = invalid("podCertificate needs an API server, and this node has none; put key and certificate into a Secret")
		default:
			err = invalid("projected source %d is of a kind this node does not know", i)
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	return aggregate(failed)
}

// clean returns p with its paths in their shortest form. It refuses paths that
// would leave the volume, collide with the writer's own names ("..data"), or need
// a name to be both file and directory.
func (p Payload) clean() (Payload, error) {
	total := 0
	out := make(Payload, len(p))
	for _, name := range slices.Sorted(maps.Keys(p)) { // so that of two spellings always the same one stays
		file := p[name]
		total += len(file.Data)
		if err := checkPath(name); err != nil {
			return nil, err
		}
		out[path.Clean(name)] = file
	}
	for name := range out {
		for dir := parent(name); dir != ""; dir = parent(dir) {
			if _, clash := out[dir]; clash {
				return nil, invalid("paths %q and %q clash: one name cannot be both a file and a directory", dir, name)
			}
		}
	}
	if total > maxPayload {
		return nil, invalid("the volume would hold %d bytes; at most %d are allowed", total, maxPayload)
	}
	return out, nil
}

const (
	maxPath = 4096
	maxName = 255
)

func checkPath(name string) error {
	elements := strings.Split(name, "/")
	switch {
	case name == "":
		return invalid("invalid path: must not be empty: %q", name)
	case strings.HasPrefix(name, "/"):
		return invalid("invalid path: must be relative path: %s", name)
	case len(name) > maxPath:
		return invalid("invalid path: must be less than or equal to %d characters", maxPath)
	case slices.Contains(elements, ".."):
		return invalid("invalid path: must not contain '..': %s", name)
	case strings.HasPrefix(path.Clean(name), ".."):
		return invalid("invalid path: must not start with '..': %s", name)
	case path.Clean(name) == ".":
		return invalid("invalid path: names the volume itself: %s", name)
	case strings.ContainsRune(name, 0):
		return invalid("invalid path: contains a zero byte")
	}
	for _, e := range elements {
		if len(e) > maxName {
			return invalid("invalid path: filenames must be less than or equal to %d characters", maxName)
		}
	}
	return nil
}

func parent(name string) string {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return ""
	}
	return name[:i]
}

// Size is what the payload takes on a file system of 4 KiB blocks.
func (p Payload) Size() int64 {
	const block = 4096
	var total int64
	for _, file := range p {
		total += (int64(len(file.Data)) + block - 1) / block * block
	}
	return total
}

// Top returns the names that must be visible at the top of the volume, sorted.
func (p Payload) Top() []string {
	seen := map[string]bool{}
	for name := range p {
		first, _, _ := strings.Cut(name, "/")
		seen[first] = true
	}
	return slices.Sorted(maps.Keys(seen))
}
