package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/berthd/berth/test/image"
)

// mirror is where the registry listens, in each round's own network namespace.
const mirror = "127.0.0.1:5000"

// startRegistry serves the images in dir/registry at address until the returned
// program is ended.
func startRegistry(dir, address string) (*program, error) {
	conf := filepath.Join(dir, "registry-"+address[len("127.0.0.1:"):]+".yml")
	body := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s/registry}}\nhttp: {addr: %s}\n", dir, address)
	if err := os.WriteFile(conf, []byte(body), 0o600); err != nil {
		return nil, err
	}
	p, err := start(filepath.Join(dir, "registry.log"), exec.Command("docker-registry", "serve", conf))
	if err != nil {
		return nil, fmt.Errorf("start docker-registry (package docker-registry): %w", err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		r, err := http.Get("http://" + address + "/v2/")
		if err == nil {
			r.Body.Close()
			return p, nil
		}
		if time.Now().After(end) {
			p.end()
			return nil, fmt.Errorf("the registry does not answer: %w", err)
		}
	}
}

// freeAddress is one of this host's on which nothing listens.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// fill builds every image and pushes it. It returns the digest of digestImage.
func fill(dir string) (string, error) {
	program := filepath.Join(dir, "program")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./test/critest/program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program of the images: %w: %s", err, out)
	}
	all, err := pictures(program)
	if err != nil {
		return "", err
	}
	address, err := freeAddress()
	if err != nil {
		return "", err
	}
	r, err := startRegistry(dir, address)
	if err != nil {
		return "", err
	}
	defer r.end()
	own := ""
	for _, p := range all {
		digest, err := image.Push("http://"+address, p.name, p.tag, p.spec)
		if err != nil {
			return "", fmt.Errorf("push %s:%s: %w", p.name, p.tag, err)
		}
		if p.name == digestImage {
			own = digest
		}
	}
	return own, nil
}

// writeHosts makes the loopback registry the mirror of every registry, in the
// form that Berth and containerd both read.
func writeHosts(dir string) error {
	for _, name := range registries {
		d := filepath.Join(dir, name)
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
		body := fmt.Sprintf("server = \"http://%[1]s\"\n\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror)
		if err := os.WriteFile(filepath.Join(d, "hosts.toml"), []byte(body), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// publishedDigest is the digest of test-image-digest that critest 1.36.0 names.
const publishedDigest = "9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf"

// ownDigest copies critest to path with digest (sha256:...) in place of the
// published one: nobody can build an image anew that has a given digest, and the
// spec wants some image that is pulled by its digest. Nothing else is changed.
func ownDigest(critest, path, digest string) error {
	body, err := os.ReadFile(critest)
	if err != nil {
		return fmt.Errorf("read critest: %w; build it: sh test/peer/build.sh critest", err)
	}
	if !bytes.Contains(body, []byte(publishedDigest)) {
		return fmt.Errorf("%s does not name the image %s@sha256:%s: it is not critest 1.36.0", critest, digestImage, publishedDigest)
	}
	body = bytes.ReplaceAll(body, []byte(publishedDigest), []byte(digest[len("sha256:"):]))
	return os.WriteFile(path, body, 0o755)
}
