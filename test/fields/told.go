package fields

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// told are the commands that look at what is told of a pod, and those that give
// it something to tell.
var told = map[string]func(*running) (string, error){
	"event":      (*running).event,
	"condition":  (*running).condition,
	"terminated": (*running).terminated,
	"cri":        (*running).byCRI,
	"finally":    (*running).finally,
	"gone":       func(r *running) (string, error) { r.a.WaitGone(r.pod, stepTime); return "", nil },
	"unplace":    func(r *running) (string, error) { r.a.Unplace(r.c.Name + ".yaml"); return "", nil },
}

// choose returns the text that matches what the step wants, so that ^ and $ are
// of one message; all of them if none does.
func (r *running) choose(texts []string) string {
	want := regexp.MustCompile("(?s)" + r.fill(r.step.Want)) // it has been compiled once
	if i := slices.IndexFunc(texts, func(text string) bool { return want.MatchString(strings.TrimSpace(text)) }); i >= 0 {
		return texts[i]
	}
	return strings.Join(texts, "\n")
}

// event looks for one of the pod's events: TYPE REASON [CONTAINER].
func (r *running) event() (string, error) {
	words := strings.Fields(r.step.Args)
	if len(words) < 2 {
		return "", errors.New("event wants TYPE REASON [CONTAINER]")
	}
	out, err := r.a.Berth("get", "events", r.pod, "-o", "json")
	if err != nil {
		return "", err
	}
	var list v1.EventList
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return "", err
	}
	var messages, others []string
	for _, e := range list.Items {
		others = append(others, strings.Join([]string{e.Type, e.Reason, e.InvolvedObject.FieldPath, e.Message}, " "))
		if e.Type == words[0] && e.Reason == words[1] && (len(words) < 3 || strings.HasSuffix(e.InvolvedObject.FieldPath, "{"+words[2]+"}")) {
			messages = append(messages, e.Message)
		}
	}
	if len(messages) == 0 {
		return "", fmt.Errorf("no such event, but:\n%s", strings.Join(others, "\n"))
	}
	return r.choose(messages), nil
}

// condition looks at one of the pod's conditions: TYPE STATUS [REASON]; without
// REASON it has none.
func (r *running) condition() (message string, err error) {
	words := append(strings.Fields(r.step.Args), "", "", "")
	return message, r.check(func(p *v1.Pod) error {
		for _, c := range p.Status.Conditions {
			if string(c.Type) != words[0] {
				continue
			}
			if string(c.Status) != words[1] || c.Reason != words[2] {
				return fmt.Errorf("%s is %s, reason %q", c.Type, c.Status, c.Reason)
			}
			message = c.Message
			return nil
		}
		return fmt.Errorf("it has no condition %s", words[0])
	})
}

// terminated looks at how a container's instance has ended, the last or the one
// before: NAME REASON [CODE].
func (r *running) terminated() (message string, err error) {
	words := append(strings.Fields(r.step.Args), "", "")
	return message, r.check(func(p *v1.Pod) error {
		var messages []string
		for _, list := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
			for _, s := range list {
				for _, t := range []*v1.ContainerStateTerminated{s.State.Terminated, s.LastTerminationState.Terminated} {
					if s.Name == words[0] && t != nil && t.Reason == words[1] && (words[2] == "" || words[2] == fmt.Sprint(t.ExitCode)) {
						messages = append(messages, t.Message)
					}
				}
			}
		}
		if len(messages) == 0 {
			return fmt.Errorf("container %s did not end with %s %s", words[0], words[1], words[2])
		}
		message = r.choose(messages)
		return nil
	})
}

// byCRI does something to the pod behind the agent's back, at the socket of CRI:
// stop-sandbox, or stop C or remove C.
func (r *running) byCRI() (string, error) {
	what, name, _ := strings.Cut(r.step.Args, " ")
	runtime, _ := r.a.CRI()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if what == "stop-sandbox" {
		p, err := r.a.Pod(r.pod)
		if err != nil {
			return "", err
		}
		list, err := runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
			LabelSelector: map[string]string{"io.kubernetes.pod.uid": string(p.UID)}}})
		if err != nil || len(list.Items) == 0 {
			return "", fmt.Errorf("no sandbox: %w", err)
		}
		id := list.Items[0].Id
		if _, err := runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err == nil {
			return "", nil
		}
		// The agent stops it too as soon as it sees it end, and a runtime may not bear both at once.
		_, err = runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		return "", err
	}
	id, err := r.container(name)
	if err != nil {
		return "", err
	}
	switch what {
	case "stop":
		_, err = runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
	case "remove":
		_, err = runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	default:
		err = fmt.Errorf("cri knows stop-sandbox, stop and remove, not %q", what)
	}
	return "", err
}

// finally has a shell command run when the case is over, whatever its end, before
// its agent ends.
func (r *running) finally() (string, error) {
	command := r.step.Args
	r.t.Cleanup(func() {
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			r.t.Errorf("finally %s: %v: %s", command, err, out)
		}
	})
	return "", nil
}
