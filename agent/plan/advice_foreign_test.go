package plan

import (
	"strings"
	"testing"

	"github.com/berthd/berth/agent/pod"
)

// TestAdviceOnForeignWords: the sentences are those of containerd 2.4.2 with
// runc 1.5.2 and crun 1.8.1, as pods have got them, shortened at their beginning.
func TestAdviceOnForeignWords(t *testing.T) {
	const init = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: error during container init: "
	for said, want := range map[string]struct {
		op   pod.Op
		does string
	}{
		init + `exec: "no-such-program": executable file not found in $PATH`:                                            {pod.OpStartContainer, "no-such-program must be a program in the image"},
		init + `exec: "/etc/passwd": permission denied`:                                                                 {pod.OpStartContainer, "x permission"},
		init + `exec: "/tmp": is a directory`:                                                                           {pod.OpStartContainer, "Name an executable file"},
		init + `mkdir /etc/passwd: not a directory`:                                                                     {pod.OpStartContainer, "Correct workingDir"},
		init + `error mounting "/a/v" to rootfs at "/etc/passwd": mount src=/a/v, dst=/etc/passwd: not a directory`:     {pod.OpStartContainer, "Correct the mountPath /etc/passwd"},
		"OCI runtime create failed: executable file `no-such-program` not found in $PATH: No such file or directory":    {pod.OpStartContainer, "no-such-program must be a program in the image"},
		`OCI runtime create failed: open executable: Permission denied`:                                                 {pod.OpStartContainer, "x permission"},
		"OCI runtime create failed: chdir `/etc/passwd`: Not a directory":                                               {pod.OpStartContainer, "Correct workingDir"},
		`failed to create containerd container: no users found`:                                                         {pod.OpStartContainer, "Set runAsUser"},
		`cannot load seccomp profile "/p/absent.json": open /p/absent.json: no such file or directory`:                  {pod.OpStartContainer, "/p/absent.json is the file"},
		`unable to get OCI runtime for sandbox "6d": no runtime for "no-such-handler" is configured`:                    {pod.OpCreateSandbox, "Configure the runtime no-such-handler"},
		`Network plugin returns error: cni plugin not initialized`:                                                      {pod.OpCreateSandbox, "/etc/cni/net.d"},
		`plugin type="odd" failed (add): failed to find plugin "odd" in path [/opt/cni/bin]`:                            {pod.OpCreateSandbox, "Install the CNI plugin odd in one of /opt/cni/bin"},
		`get image config descriptor: unexpected media type text/html for sha256:01: not found`:                         {pod.OpPullImage, "what answers in the place of the registry"},
		`children: invalid desc sha256:92: invalid character 'n' looking for beginning of object key string`:            {pod.OpPullImage, "is no image"},
		`Head "https://r/v2/private/manifests/1": net/http: timeout awaiting response headers`:                          {pod.OpPullImage, "reaches the registry"},
		`connection error: desc = "transport: Error while dialing: dial unix /run/c.sock: connect: connection refused"`: {pod.OpObserve, "nobody answers on /run/c.sock"},
	} {
		got := Advise(Trouble{Op: want.op, Kind: pod.Unavailable, Message: said, Container: "main", Image: "r/x:1"})
		if !strings.Contains(got, want.does) {
			t.Errorf("%s: %q, want %q", said, got, want.does)
		}
	}
}
