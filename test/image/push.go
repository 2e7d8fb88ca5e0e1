package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push uploads s to the registry at address (http://host:port) as name:tag, by
// the OCI distribution protocol, and returns the digest of its manifest.
func Push(address, name, tag string, s Spec) (string, error) {
	s.Names = []string{name + ":" + tag}
	var archive bytes.Buffer
	if err := WriteOCI(&archive, s); err != nil {
		return "", err
	}
	blobs := map[string][]byte{}
	var index ocispec.Index
	for tr := tar.NewReader(&archive); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			return "", err
		}
		if h.Name == ocispec.ImageIndexFile {
			if err := json.Unmarshal(body, &index); err != nil {
				return "", err
			}
		} else if strings.HasPrefix(h.Name, "blobs/") {
			blobs["sha256:"+path.Base(h.Name)] = body
		}
	}
	manifest := index.Manifests[0].Digest.String()
	for digest, body := range blobs {
		if digest == manifest {
			continue
		}
		r, err := http.Post(address+"/v2/"+name+"/blobs/uploads/", "", nil)
		if err != nil {
			return "", err
		}
		r.Body.Close()
		to, err := url.Parse(r.Header.Get("Location"))
		if err != nil {
			return "", err
		}
		q := to.Query()
		q.Set("digest", digest)
		to.RawQuery = q.Encode()
		if err := put(to.String(), "application/octet-stream", body); err != nil {
			return "", err
		}
	}
	return manifest, put(address+"/v2/"+name+"/manifests/"+tag, ocispec.MediaTypeImageManifest, blobs[manifest])
}

func put(to, mediaType string, body []byte) error {
	req, err := http.NewRequest(http.MethodPut, to, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", mediaType)
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusCreated {
		return fmt.Errorf("PUT %s: %s", to, r.Status)
	}
	return nil
}
