package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// meddled is an agent whose runtime is another process, with somebody in between.
type meddled struct {
	*Agent
	m *Meddler
}

// edited has answers of type M changed by change.
func edited[M any, P interface {
	*M
	proto.Message
}](m *Meddler, method string, change func(P)) {
	m.Edit(method, func(answer []byte) []byte {
		var r P = new(M)
		if proto.Unmarshal(answer, r) != nil {
			return answer
		}
		change(r)
		out, err := proto.Marshal(r)
		if err != nil {
			return answer
		}
		return out
	})
}

// TestReasonsOfTheRuntime lets a real runtime fail as an agent sees it fail on bad
// days, and sees that pods tell of it in Kubernetes' words and go on afterwards.
func TestReasonsOfTheRuntime(t *testing.T) {
	binary := Binary(t, "BERTH_BIN")
	below := New(t, binary)
	below.Start()
	below.ImportBusybox()
	m := below.Meddle()
	a := New(t, binary)
	a.Flags = append(a.Flags, "--container-runtime-endpoint", "unix://"+m.Socket)
	a.Start()
	for _, test := range []struct {
		name string
		run  func(*testing.T, meddled)
	}{
		{"image", testImageUnknown}, {"signature", testSignature}, {"box", testSandboxStatus}, {"created", testCreated},
		{"unknown", testUnknownState}, {"unknown-init", testUnknownInit}, {"vanished", testVanished}, {"forgotten", testForgotten}, {"orphan", testOrphan},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer m.Behave()
			test.run(t, meddled{a.For(t), m})
		})
	}
}

// over takes the pod away and waits for it.
func (a meddled) over(name string) {
	a.T.Helper()
	a.m.Behave()
	a.Unplace(name + ".yaml")
	a.WaitGone(name, 40*time.Second)
}

// testImageUnknown: the runtime cannot say whether it has an image.
func testImageUnknown(t *testing.T, a meddled) {
	a.m.Refuse("ImageStatus", status.Error(codes.Unknown, "the image store is sick"))
	a.Place("image.yaml", podOf("image", "", ""))
	a.Wait("image", 20*time.Second, waiting("ImageInspectError", `Failed to inspect image "`+Busybox+`": the image store is sick`))
	a.lifeEvent("image", "InspectFailed", `Failed to inspect image "`)
	a.lifeEvent("image", "Failed", "Error: ImageInspectError")
	a.m.Behave()
	a.Wait("image", 60*time.Second, Ready)
	a.over("image")
}

// testSignature: the runtime has a policy, which the image's signature breaks.
func testSignature(t *testing.T, a meddled) {
	a.m.Refuse("PullImage", status.Error(codes.Unknown, "SignatureValidationFailed: nobody known has signed it"))
	a.Place("signature.yaml", strings.ReplaceAll(podOf("signature", "", ""), Busybox, "registry.example/signed:1"))
	a.Wait("signature", 20*time.Second, waiting("SignatureValidationFailed", "nobody known has signed it"))
	a.lifeEvent("signature", "Failed", "Error: SignatureValidationFailed")
	a.over("signature")
}

// testSandboxStatus: a sandbox has been made, and cannot be looked at.
func testSandboxStatus(t *testing.T, a meddled) {
	a.m.Refuse("PodSandboxStatus", status.Error(codes.Unknown, "the disk is full"))
	a.Place("box.yaml", podOf("box", "", ""))
	a.lifeEvent("box", "FailedPodSandBoxStatus", "Unable to get pod sandbox status: the disk is full")
	a.m.Behave()
	a.Wait("box", 60*time.Second, all(Ready, condition(v1.PodReadyToStartContainers, "True")))
	a.over("box")
}

// testCreated: a container has been made, and is not started yet: it waits, for
// no reason that there is a word for.
func testCreated(t *testing.T, a meddled) {
	a.m.Hold("StartContainer")
	a.Place("created.yaml", podOf("created", "", ""))
	a.Wait("created", 20*time.Second, func(p *v1.Pod) error {
		if w := statusOf(p, "c").State.Waiting; w == nil || w.Reason != "" || w.Message != "" {
			return fmt.Errorf("it does not wait without a reason")
		}
		return condition(v1.ContainersReady, "False ContainersNotReady containers with unready status: [c]")(p)
	})
	a.m.Behave()
	a.Wait("created", 60*time.Second, Ready)
	a.over("created")
}

// testUnknownState: the runtime has lost sight of a container, which is killed
// before another is started.
func testUnknownState(t *testing.T, a meddled) {
	a.Place("unknown.yaml", strings.Replace(podOf("unknown", "", ""), `trap "exit 0" TERM`, `trap "sleep 3; exit 0" TERM`, 1))
	p := a.Wait("unknown", 60*time.Second, Ready)
	id := idOf(p, "c")
	edited(a.m, "ContainerStatus", func(r *runtimeapi.ContainerStatusResponse) {
		if r.Status.GetId() == id && r.Status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.Status.State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
		}
	})
	a.look(p)
	a.Wait("unknown", 20*time.Second, func(p *v1.Pod) error {
		s := statusOf(p, "c").State.Terminated
		if s == nil || s.Reason != "ContainerStatusUnknown" || s.ExitCode != 137 || s.Message != "The container could not be located when the pod was terminated" {
			return fmt.Errorf("its state is not told to be unknown")
		}
		return condition(v1.ContainersReady, "False ContainersNotReady containers with unknown status: [c]")(p)
	})
	a.lifeEvent("unknown", "Killing", `Container is in "unknown" state, try killing it before restart`)
	a.m.Behave()
	a.Wait("unknown", 60*time.Second, func(p *v1.Pod) error {
		if s := statusOf(p, "c"); s.RestartCount != 1 {
			return fmt.Errorf("%d restarts", s.RestartCount)
		}
		return Ready(p)
	})
	a.over("unknown")
}

// testUnknownInit: the same of an init container; the pod does not count as initialized.
func testUnknownInit(t *testing.T, a meddled) {
	first := "  initContainers: [{name: first, image: " + Busybox + ", command: [sh, -c, 'trap \"sleep 3; exit 1\" TERM; while :; do sleep 1 & wait $!; done']}]"
	a.Place("unknown-init.yaml", podOf("unknown-init", "", first))
	p := a.Wait("unknown-init", 60*time.Second, func(p *v1.Pod) error {
		if statusOf(p, "first").State.Running == nil {
			return fmt.Errorf("the init container does not run")
		}
		return nil
	})
	id := idOf(p, "first")
	edited(a.m, "ContainerStatus", func(r *runtimeapi.ContainerStatusResponse) {
		if r.Status.GetId() == id && r.Status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.Status.State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
		}
	})
	a.look(p)
	a.Wait("unknown-init", 20*time.Second, condition(v1.PodInitialized, "False ContainersNotInitialized containers with unknown status: [first]"))
	a.lifeEvent("unknown-init", "Killing", `Init container is in "unknown" state, try killing it before restart`)
	a.over("unknown-init")
}

// look has the agent look at the pod: another container of it begins or ends.
func (a meddled) look(p *v1.Pod) {
	a.T.Helper()
	a.Must("debug", p.Name, "--image", Busybox, "-c", "look", "--", "true")
}

func idOf(p *v1.Pod, container string) string {
	_, id, _ := strings.Cut(statusOf(p, container).ContainerID, "://")
	return id
}

// testVanished: the runtime has forgotten a container that ran.
func testVanished(t *testing.T, a meddled) {
	a.Place("vanished.yaml", podOf("vanished", "", ""))
	p := a.Wait("vanished", 60*time.Second, Ready)
	id := idOf(p, "c")
	edited(a.m, "ListContainers", func(r *runtimeapi.ListContainersResponse) {
		r.Containers = slices.DeleteFunc(r.Containers, func(c *runtimeapi.Container) bool { return c.Id == id })
	})
	a.look(p)
	a.Wait("vanished", 60*time.Second, func(p *v1.Pod) error {
		last := statusOf(p, "c").LastTerminationState.Terminated
		if last == nil || last.Reason != "ContainerStatusUnknown" || last.ExitCode != 137 ||
			last.Message != "The container could not be located when the pod was deleted.  The container used to be Running" || statusOf(p, "c").RestartCount != 1 {
			return fmt.Errorf("it is not told that it was lost: %+v", last)
		}
		return Ready(p)
	})
	a.over("vanished")
}

// loseRecords kills the agent and takes away all that it knows.
func (a meddled) loseRecords(between func()) {
	a.T.Helper()
	a.Kill9()
	for _, dir := range []string{"root/records", "run/pods"} {
		if err := os.RemoveAll(filepath.Join(a.Dir, dir)); err != nil {
			a.T.Fatal(err)
		}
	}
	between()
	a.Start()
}

// testForgotten: agent and runtime have forgotten an init container of a pod that runs.
func testForgotten(t *testing.T, a meddled) {
	first := "  initContainers: [{name: first, image: " + Busybox + ", command: ['true']}]"
	a.Place("forgotten.yaml", podOf("forgotten", "", first))
	p := a.Wait("forgotten", 60*time.Second, Ready)
	id := idOf(p, "first")
	a.loseRecords(func() {
		edited(a.m, "ListContainers", func(r *runtimeapi.ListContainersResponse) {
			r.Containers = slices.DeleteFunc(r.Containers, func(c *runtimeapi.Container) bool { return c.Id == id })
		})
	})
	a.Wait("forgotten", 60*time.Second, func(p *v1.Pod) error {
		s := statusOf(p, "first").State.Terminated
		if s == nil || s.Reason != "Completed" || s.Message != "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally" {
			return fmt.Errorf("init container: %+v", s)
		}
		return all(Ready, condition(v1.PodInitialized, "True"))(p)
	})
	a.over("forgotten")
}

// testOrphan: of a pod nobody knows more than what the runtime has; it is ended.
func testOrphan(t *testing.T, a meddled) {
	deaf := strings.NewReplacer(`trap "exit 0" TERM`, `trap "" TERM`, "terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 6")
	a.Place("orphan.yaml", deaf.Replace(podOf("orphan", "", "")))
	a.Wait("orphan", 60*time.Second, Ready)
	a.loseRecords(func() { a.Unplace("orphan.yaml") })
	a.Wait("orphan", 20*time.Second, all(condition(v1.ContainersReady, "False UnknownContainerStatuses"), condition(v1.PodReady, "False UnknownContainerStatuses")))
	a.WaitGone("orphan", 60*time.Second)
}
