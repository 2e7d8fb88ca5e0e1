package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"
)

// fetcher gets one URL again and again. What cannot be fetched stays as it was.
type fetcher struct {
	set    *Set
	origin *origin
	url    URL
	etag   string
	last   []byte // body of the last good answer
	failed error  // of the last fetch
}

func (f *fetcher) run(ctx context.Context) {
	for first := true; ctx.Err() == nil; first = false {
		f.fetch(ctx, first)
		period := f.set.cfg.Period
		select {
		case <-ctx.Done():
		case <-time.After(period*9/10 + rand.N(period/5+1)):
		}
	}
}

// fetch asks once, and sends what changed.
func (f *fetcher) fetch(ctx context.Context, first bool) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	body, etag, err := f.get(ctx)
	name := f.url.Address
	switch {
	case err != nil && (f.failed == nil || f.failed.Error() != err.Error()):
		c := &content{err: fmt.Errorf("fetch it: %w", err)}
		f.set.send(ctx, update{origin: f.origin, files: map[string]*content{name: c}})
	case err == nil && (body == nil || bytes.Equal(body, f.last)) && f.failed == nil && !first:
	case err == nil:
		if body != nil {
			f.last, f.etag = body, etag
		}
		c := &content{reading: read(redact(name), f.last)}
		f.set.send(ctx, update{origin: f.origin, whole: true, files: map[string]*content{name: c}})
	}
	f.failed = err
}

// get returns nil for a body that has not changed.
func (f *fetcher) get(ctx context.Context) (body []byte, etag string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url.Address, nil)
	if err != nil {
		return nil, "", errors.New("the address is not valid")
	}
	for k, v := range f.url.Header {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	req.Header.Set("Accept", "application/yaml, application/json, text/plain;q=0.8, */*;q=0.5")
	if f.etag != "" && f.last != nil {
		req.Header.Set("If-None-Match", f.etag)
	}
	resp, err := f.set.cfg.Client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the address, which may hold a password
		}
		return nil, "", err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified && f.last != nil:
		return nil, f.etag, nil
	case resp.StatusCode != http.StatusOK:
		return nil, "", fmt.Errorf("the server answered %s", resp.Status)
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxContent+1))
	switch {
	case err != nil:
		return nil, "", fmt.Errorf("read the answer: %w", err)
	case len(body) > maxContent:
		return nil, "", fmt.Errorf("the answer has more than %d MiB", maxContent>>20)
	case len(bytes.TrimSpace(body)) == 0:
		return nil, "", errors.New("the answer is empty: an empty PodList removes all pods")
	}
	return body, resp.Header.Get("ETag"), nil
}
