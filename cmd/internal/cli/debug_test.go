package cli

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/cmd/internal/client"
)

// amendable adds to the fake what debug and set-condition ask for; a container
// that was added waits until it is watched, and is in state then.
func amendable(f *fakeAgent, state v1.ContainerState) (added *[]v1.EphemeralContainer, set *[]v1.PodCondition) {
	added, set = &[]v1.EphemeralContainer{}, &[]v1.PodCondition{}
	f.HandleFunc("POST /berth/v1/pods/{ns}/{name}/ephemeralcontainers", f.one(func(w http.ResponseWriter, r *http.Request, d client.PodDetail) {
		var c v1.EphemeralContainer
		if err := json.NewDecoder(r.Body).Decode(&c); err != nil || c.Name == "web" {
			refuse(w, 422, "the pod has a container %q already", c.Name)
			return
		}
		*added = append(*added, c)
		show := func(s v1.ContainerState) {
			d.Pod.Status.EphemeralContainerStatuses = []v1.ContainerStatus{{Name: c.Name, State: s}}
			f.put(d)
		}
		waits := v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no route"}}
		show(waits)
		answer(w, map[string]string{"container": c.Name})
		go func() {
			for watched := 0; watched == 0; time.Sleep(time.Millisecond) {
				f.mu.Lock()
				watched = len(f.watchers)
				f.mu.Unlock()
			}
			show(waits)
			show(state)
		}()
	}))
	f.HandleFunc("PUT /berth/v1/pods/{ns}/{name}/conditions", f.one(func(w http.ResponseWriter, r *http.Request, _ client.PodDetail) {
		var c v1.PodCondition
		if err := json.NewDecoder(r.Body).Decode(&c); err != nil || c.Type == "Ready" {
			refuse(w, 422, "%s is the node's own condition", c.Type)
			return
		}
		*set = append(*set, c)
		answer(w, map[string]string{})
	}))
	f.HandleFunc("/attach/{ns}/{name}/{container}", f.one(f.exec))
	return added, set
}

func TestDebug(t *testing.T) {
	f := withWeb(t)
	added, _ := amendable(f, v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: 3}})
	// One that has ended before it could be attached to leaves its log and its exit code.
	code, out, errOut := f.berth(t.Context(), "", "debug", "web", "-c", "dbg", "-i", "--", "false")
	if code != 3 || out != "dbg?\n" || strings.Count(errOut, "dbg waits: ErrImagePull: no route") != 1 {
		t.Errorf("exit code %d, %q %q", code, out, errOut)
	}
	if c := (*added)[0]; c.Image == "" || !c.Stdin || !c.StdinOnce || c.SecurityContext != nil {
		t.Errorf("container %+v", c)
	}
	code, out, errOut = f.berth(t.Context(), "", "debug", "web", "--image", "tools", "--target", "web", "--", "ps", "-ef")
	c := (*added)[1]
	if code != 0 || !strings.Contains(out, "added to pod/web: `berth logs web -c debugger-") || !regexp.MustCompile(`^debugger-[a-z0-9]{5}$`).MatchString(c.Name) {
		t.Errorf("exit code %d, %q %q, container %+v", code, out, errOut, c)
	}
	if c.Image != "tools" || c.TargetContainerName != "web" || strings.Join(c.Command, " ") != "ps -ef" || c.Stdin || c.TTY || c.SecurityContext.Capabilities.Add[0] != "SYS_PTRACE" {
		t.Errorf("container %+v", c)
	}
	for _, args := range [][]string{{"debug", "web", "ps"}, {"debug", "none"}, {"debug", "web", "-c", "web"}, {"debug"}} {
		if code, _, errOut := f.berth(t.Context(), "", args...); code != 1 || errOut == "" {
			t.Errorf("%v: exit code %d, %q", args, code, errOut)
		}
	}
}

func TestSetCondition(t *testing.T) {
	f := withWeb(t)
	_, set := amendable(f, v1.ContainerState{})
	code, out, _ := f.berth(t.Context(), "", "set-condition", "web", "example.com/lb=True", "--reason", "Attached", "--message", "all is well")
	if code != 0 || out != "pod/web condition example.com/lb=True set\n" {
		t.Errorf("exit code %d, %q", code, out)
	}
	if c := (*set)[0]; c.Type != "example.com/lb" || c.Status != v1.ConditionTrue || c.Reason != "Attached" || c.Message != "all is well" {
		t.Errorf("set %+v", c)
	}
	for _, args := range [][]string{{"web", "lb"}, {"web", "=True"}, {"web", "Ready=True"}, {"none", "lb=True"}, {"web"}} {
		if code, _, errOut := f.berth(t.Context(), "", append([]string{"set-condition"}, args...)...); code != 1 || errOut == "" {
			t.Errorf("%v: exit code %d, %q", args, code, errOut)
		}
	}
}
