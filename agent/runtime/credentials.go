package runtime

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const maxDockerConfig = 4 << 20

// dockerAuth is an entry of a Docker configuration. It is never logged.
type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

type credential struct {
	pattern string
	auth    *cri.AuthConfig
}

// credentials are those that match image, the most specific first: the pod's
// secrets before the node's files. missing names the secrets that are not there;
// what cannot be read is skipped, as upstream does.
func (r *Runtime) credentials(p *v1.Pod, image string) (auths []*cri.AuthConfig, missing []string) {
	var all []credential
	for _, ref := range p.Spec.ImagePullSecrets {
		s, ok := r.Objects.Secret(p.Namespace, ref.Name)
		if !ok {
			missing = append(missing, ref.Name)
			continue
		}
		switch s.Type {
		case v1.SecretTypeDockerConfigJson:
			all = append(all, parseDockerConfig(s.Data[v1.DockerConfigJsonKey])...)
		case v1.SecretTypeDockercfg:
			all = append(all, parseDockerConfig(s.Data[v1.DockerConfigKey])...)
		}
	}
	for _, file := range r.cfg.DockerConfigs {
		if content, err := readLimited(file, maxDockerConfig); err == nil {
			all = append(all, parseDockerConfig(content)...)
		}
	}
	name := repository(image)
	all = slices.DeleteFunc(all, func(c credential) bool { return !matchesImage(c.pattern, name) })
	slices.SortStableFunc(all, func(a, b credential) int { return len(b.pattern) - len(a.pattern) })
	for _, c := range all {
		if !slices.ContainsFunc(auths, func(have *cri.AuthConfig) bool { return sameAuth(have, c.auth) }) {
			auths = append(auths, c.auth)
		}
	}
	return auths, missing
}

func sameAuth(a, b *cri.AuthConfig) bool {
	return a.Username == b.Username && a.Password == b.Password && a.Auth == b.Auth && a.IdentityToken == b.IdentityToken && a.RegistryToken == b.RegistryToken
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// parseDockerConfig reads both forms: {"auths": {...}} and the older bare map.
func parseDockerConfig(content []byte) []credential {
	var file struct {
		Auths map[string]dockerAuth `json:"auths"`
	}
	if json.Unmarshal(content, &file) != nil || file.Auths == nil {
		if json.Unmarshal(content, &file.Auths) != nil {
			return nil
		}
	}
	patterns := make([]string, 0, len(file.Auths))
	for pattern := range file.Auths {
		patterns = append(patterns, pattern)
	}
	slices.Sort(patterns)
	var all []credential
	for _, pattern := range patterns {
		a := file.Auths[pattern]
		if a.Auth != "" && a.Username == "" {
			plain, err := base64.StdEncoding.DecodeString(strings.TrimRight(a.Auth, "\x00"))
			if err != nil {
				continue
			}
			a.Username, a.Password, _ = strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
		}
		auth := &cri.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		all = append(all, credential{pattern, auth})
	}
	return all
}

// repository is the image's full name without tag and digest: docker.io/library/x.
func repository(image string) string {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image
	}
	return named.Name()
}

// matchesImage says that credentials for pattern are for the repository: same
// port, every part of the host matched as a glob, path as a prefix.
func matchesImage(pattern, repo string) bool {
	if !strings.Contains(pattern, "://") {
		pattern = "https://" + pattern
	}
	u, err := url.Parse(pattern)
	if err != nil {
		return false
	}
	host, at, _ := strings.Cut(repo, "/")
	wantHost, wantPort := u.Hostname(), u.Port()
	wantPath := strings.Trim(u.Path, "/")
	if wantPath == "v1" || wantPath == "v2" { // Docker's old way of writing a registry
		wantPath = ""
	}
	if wantHost == "index.docker.io" || wantHost == "registry-1.docker.io" {
		wantHost = "docker.io"
	}
	h, err := url.Parse("https://" + host)
	if err != nil || h.Port() != wantPort {
		return false
	}
	have, want := strings.Split(h.Hostname(), "."), strings.Split(wantHost, ".")
	if len(have) != len(want) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); err != nil || !ok {
			return false
		}
	}
	return strings.HasPrefix(at, wantPath)
}
