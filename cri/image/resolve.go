package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var manifestTypes = strings.Join([]string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
	images.MediaTypeDockerSchema2Manifest, images.MediaTypeDockerSchema2ManifestList, "*/*",
}, ", ")

// resolve asks what the reference stands for now. By tag, the hosts that may say
// so are trusted with the answer; a digest is what it is.
func (r *remote) resolve(ctx context.Context) (ocispec.Descriptor, error) {
	failpoint.Hit("cri/image/resolve")
	object, can := "latest", docker.HostCapabilityResolve|docker.HostCapabilityPull
	var want digest.Digest
	if d, ok := r.named.(reference.Digested); ok {
		object, want, can = d.Digest().String(), d.Digest(), docker.HostCapabilityPull
	} else if t, ok := r.named.(reference.Tagged); ok {
		object = t.Tag()
	}
	a := ask{method: http.MethodHead, path: "manifests/" + object, accept: manifestTypes}
	resp, _, err := r.each(ctx, can, nil, a)
	if err == nil {
		resp.Body.Close()
		if desc, ok := described(resp, want); ok {
			return desc, nil
		}
	} else if !knowsNoHead(err) {
		return ocispec.Descriptor{}, r.explain(ctx, err)
	}
	// A registry that does not know HEAD, or does not say all.
	a.method = http.MethodGet
	resp, _, gerr := r.each(ctx, can, nil, a)
	if gerr != nil {
		return ocispec.Descriptor{}, r.explain(ctx, gerr)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read manifest: %w", err)
	}
	if len(body) > maxManifest {
		return ocispec.Descriptor{}, codef(CodeLimit, "manifest has more than the %d bytes that are read", maxManifest)
	}
	desc := ocispec.Descriptor{MediaType: mediaType(resp), Digest: digest.FromBytes(body), Size: int64(len(body))}
	if want != "" && desc.Digest != want {
		return desc, codef(CodeDigestMismatch, "manifest has digest %s instead of %s", desc.Digest, want)
	}
	return desc, nil
}

func knowsNoHead(err error) bool {
	var status *statusError
	if !errors.As(err, &status) {
		return false
	}
	switch status.status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		return true
	}
	return false
}

// described takes a manifest's description from the headers of an answer; ok if
// they say all.
func described(resp *http.Response, want digest.Digest) (ocispec.Descriptor, bool) {
	desc := ocispec.Descriptor{MediaType: mediaType(resp), Digest: want, Size: resp.ContentLength}
	if want == "" {
		desc.Digest = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	}
	known := images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType)
	return desc, known && desc.Size > 0 && desc.Digest.Validate() == nil
}

func mediaType(resp *http.Response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// explain tells a missing tag from a missing repository.
func (r *remote) explain(ctx context.Context, err error) error {
	domain, name := reference.Domain(r.named), reference.Path(r.named)
	if codeFor(err) != CodeTagNotFound {
		return fmt.Errorf("ask registry %s: %w", domain, err)
	}
	if !r.exists(ctx) {
		return codef(CodeRepositoryNotFound, "registry %s has no repository %s: %w", domain, name, errdefs.ErrNotFound)
	}
	return codef(CodeTagNotFound, "registry %s has no such tag or digest of repository %s: %w", domain, name, errdefs.ErrNotFound)
}

// exists asks whether the repository is there at all. When in doubt it is.
func (r *remote) exists(ctx context.Context) bool {
	if len(r.hosts) == 0 {
		return true
	}
	origin := *r
	origin.hosts = r.hosts[len(r.hosts)-1:]
	resp, _, err := origin.each(ctx, 0, nil, ask{method: http.MethodGet, path: "tags/list", accept: "application/json"})
	if err == nil {
		resp.Body.Close()
	}
	return err == nil || codeFor(err) != CodeTagNotFound
}
