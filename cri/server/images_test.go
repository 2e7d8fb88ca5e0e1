package server

import (
	"strings"
	"testing"

	testimage "github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/registry"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestImagesOverTheSocket pulls from a registry that wants credentials, and asks
// for what was pulled by each RPC.
func TestImagesOverTheSocket(t *testing.T) {
	reg := registry.Start(t)
	n := newNode(t)
	_, c := n.raw()
	ctx := t.Context()
	for name, user := range map[string]string{"number": "1234", "name": "nobody"} {
		spec, err := testimage.BusyboxSpec(name)
		if err != nil {
			t.Skip(err)
		}
		spec.Config.User = user
		reg.Push(t, "private/"+name, "v1", spec)
	}
	reg.Private("me", "secret")
	ref := reg.Address + "/private/number:v1"
	_, err := c.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err == nil {
		t.Error("pulled without credentials")
	}
	p, err := c.PullImage(ctx, &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: ref}, SandboxConfig: n.pod("puller"), Auth: &runtimeapi.AuthConfig{Username: "me", Password: "secret", ServerAddress: reg.Address},
	})
	if err != nil {
		t.Fatal(err)
	}
	second := reg.Address + "/private/name:v1"
	if _, err := c.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: second}, Auth: &runtimeapi.AuthConfig{Auth: "bWU6c2VjcmV0"}}); err != nil {
		t.Fatal(err)
	}
	st, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true})
	img := st.GetImage()
	if err != nil || img.GetId() != p.GetImageRef() || img.GetUid().GetValue() != 1234 || len(img.GetRepoTags()) != 1 || len(img.GetRepoDigests()) != 1 || img.GetSize() == 0 || st.GetInfo()["info"] == "" {
		t.Errorf("image %v, %v", st, err)
	}
	if err := n.server.cfg.Images.Pin(ctx, second, true); err != nil {
		t.Fatal(err)
	}
	l, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil || len(l.GetImages()) != 2 {
		t.Fatal(l, err)
	}
	filter := &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: second}}
	l, err = c.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: filter})
	if err != nil || len(l.GetImages()) != 1 || l.GetImages()[0].GetUsername() != "nobody" || !l.GetImages()[0].GetPinned() {
		t.Errorf("images by name: %v, %v", l, err)
	}
	s, err := c.StreamImages(ctx, &runtimeapi.StreamImagesRequest{Filter: filter})
	if got := drain(t, s, err); len(got) != 1 || len(got[0].GetImages()) != 1 || got[0].GetImages()[0].GetUsername() != "nobody" {
		t.Errorf("stream of images: %v", got)
	}
	fs, err := c.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil || fs.GetImageFilesystems()[0].GetUsedBytes().GetValue() == 0 || !strings.HasPrefix(fs.GetContainerFilesystems()[0].GetFsId().GetMountpoint(), n.dir) {
		t.Errorf("file systems %v, %v", fs, err)
	}
	for range 2 {
		_, err := c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		wantCode(t, "removal", err, codes.OK)
	}
	if st, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil || st.GetImage() != nil {
		t.Errorf("a removed image: %v, %v", st, err)
	}
	_, err = c.PullImage(ctx, &runtimeapi.PullImageRequest{})
	wantCode(t, "an image without a name", err, codes.InvalidArgument)
}

// TestStreamingURLs prepares each kind of stream.
func TestStreamingURLs(t *testing.T) {
	n := newNode(t)
	n.importBusybox(n.berthClient())
	c, _ := n.raw()
	ctx := t.Context()
	pod := n.pod("urls")
	box := n.sandbox(c, pod, "")
	cfg := containerConfig("main", "cat")
	cfg.Tty, cfg.Stdin = true, true
	id := n.begin(c, box, cfg, pod)
	plain := n.begin(c, box, containerConfig("plain", sleep...), pod)
	e, err := c.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh"}, Tty: true, Stdin: true, Stdout: true})
	if err != nil || e.GetUrl() == "" {
		t.Errorf("exec: %v, %v", e, err)
	}
	if _, err := c.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh"}, Stdout: true, Stderr: true}); err != nil {
		t.Error(err)
	}
	a, err := c.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Tty: true, Stdin: true, Stdout: true})
	if err != nil || a.GetUrl() == "" || a.GetUrl() == e.GetUrl() {
		t.Errorf("attach: %v, %v", a, err)
	}
	if _, err := c.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: plain, Stdout: true, Stderr: true}); err != nil {
		t.Error(err)
	}
	p, err := c.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: box, Port: []int32{80}})
	if err != nil || p.GetUrl() == "" {
		t.Errorf("port-forward: %v, %v", p, err)
	}
	if _, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Fatal(err)
	}
	_, err = c.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh"}, Stdout: true})
	wantCode(t, "exec in what has ended", err, codes.FailedPrecondition)
	_, err = c.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: box, Port: []int32{80}})
	wantCode(t, "ports of what has ended", err, codes.FailedPrecondition)
}
