package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// manifestLimit is the largest manifest that the agent takes.
const manifestLimit = 10 << 20

// manifest is what one -f names, or one file of a directory.
type manifest struct {
	from string
	body []byte
}

// readManifests reads what -f names: a file, a directory (its .yaml, .yml and
// .json files), - for standard input, or an http(s) URL.
func (a *app) readManifests(ctx context.Context, from string) ([]manifest, error) {
	switch {
	case from == "-":
		body, err := readLimited(a.In, "standard input")
		return []manifest{{"stdin", body}}, err
	case strings.HasPrefix(from, "http://"), strings.HasPrefix(from, "https://"):
		body, err := fetchManifest(ctx, from)
		return []manifest{{from, body}}, err
	}
	st, err := os.Stat(from)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		m, err := readManifestFile(from)
		return []manifest{m}, err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return nil, err
	}
	var all []manifest
	for _, e := range entries {
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		m, err := readManifestFile(filepath.Join(from, e.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no .yaml, .yml or .json file", from)
	}
	return all, nil
}

func readManifestFile(path string) (manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return manifest{}, err
	}
	defer f.Close()
	body, err := readLimited(f, path)
	return manifest{path, body}, err
}

func fetchManifest(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", url, res.Status)
	}
	return readLimited(res.Body, url)
}

func readLimited(r io.Reader, from string) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, manifestLimit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", from, err)
	}
	if len(body) > manifestLimit {
		return nil, fmt.Errorf("%s is larger than %d MiB, the most that a manifest may be", from, manifestLimit>>20)
	}
	if len(strings.TrimSpace(string(body))) == 0 {
		return nil, errors.New(from + " is empty")
	}
	return body, nil
}
