package source

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
)

const sandboxed = `
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: sandboxed}
handler: %s
overhead: {podFixed: {memory: 16Mi}}
scheduling: {nodeSelector: {disk: ssd}, tolerations: [{key: a, operator: Exists}, {operator: Exists, effect: NoExecute, tolerationSeconds: 5}]}
`

func classed(name, fields string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  containers: [{name: c, image: i}]\n%s", name, fields)
}

func (h *harness) hasProblem(text string) bool {
	for _, p := range h.Problems() {
		if strings.Contains(p.String(), text) {
			return true
		}
	}
	return false
}

func TestRuntimeClass(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	config := func(c *Config) { c.Paths = []string{dir} }
	write(t, filepath.Join(dir, "pod.yaml"), classed("a", "  runtimeClassName: sandboxed\n  nodeSelector: {zone: z}\n  tolerations: [{key: a, operator: Equal, value: x}]\n"))
	h := start(t, root, config)
	h.until("a problem with the unknown class", func() bool {
		return h.hasProblem(`pod.yaml:6: document 1 (Pod default/a): spec.runtimeClassName: Invalid value: "sandboxed": no manifest gives a RuntimeClass of this name (there are none): the pod is taken in as soon as one does`)
	})
	if d := h.get("a"); d != nil {
		t.Fatalf("the pod was taken in without its class: %+v", d)
	}
	write(t, filepath.Join(dir, "class.yaml"), fmt.Sprintf(sandboxed, "crun"))
	h.until("the pod with its class", func() bool { return h.get("a") != nil && len(h.Problems()) == 0 })
	first := *h.get("a")
	s := first.Pod.Spec
	if first.RuntimeHandler != "crun" || s.Overhead.Memory().String() != "16Mi" || s.NodeSelector["disk"] != "ssd" || s.NodeSelector["zone"] != "z" {
		t.Errorf("handler %q, overhead %v, node selector %v", first.RuntimeHandler, s.Overhead, s.NodeSelector)
	}
	if n := len(s.Tolerations); n != 2 || s.Tolerations[0].Value != "" || s.Tolerations[1].TolerationSeconds != nil {
		t.Errorf("tolerations are not merged: %+v", s.Tolerations)
	}

	// What becomes of the class does not touch the pod that runs.
	write(t, filepath.Join(dir, "class.yaml"), fmt.Sprintf(sandboxed, "other"))
	write(t, filepath.Join(dir, "later.yaml"), classed("later", "  runtimeClassName: sandboxed\n"))
	h.until("a later pod with the changed class", func() bool { return h.get("later") != nil && h.get("later").RuntimeHandler == "other" })
	if got := h.get("a"); got.Pod != first.Pod || got.RuntimeHandler != "crun" {
		t.Errorf("the change of the class changed the pod: %q", got.RuntimeHandler)
	}
	if err := os.Remove(filepath.Join(dir, "class.yaml")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "toolate.yaml"), classed("toolate", "  runtimeClassName: sandboxed\n"))
	h.until("a pod that comes too late", func() bool { return h.hasProblem("toolate.yaml") })
	for range 2 {
		if got := h.get("a"); got == nil || got.Pod.UID != first.Pod.UID || got.RuntimeHandler != "crun" || got.Pod.Spec.Overhead.Memory().String() != "16Mi" {
			t.Errorf("the removal of the class took the pod: %+v", got)
		}
		h.stop()
		h = start(t, root, config)
		h.until("the pods of before the restart", func() bool { return h.get("a") != nil && h.get("later") != nil })
	}
	if h.get("toolate") != nil {
		t.Error("a restart gave a pod a class that is gone")
	}
	for _, name := range []string{"pod.yaml", "later.yaml"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	h.until("the pods' end", func() bool { return h.get("a") == nil && h.get("later") == nil })
	h.stop()
	if b, err := os.ReadFile(grantedPath(root)); err != nil || string(b) != "{}" {
		t.Errorf("classes of gone pods are remembered: %s %v", b, err)
	}
}

func TestClassConflicts(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "classes.yaml"), fmt.Sprintf(sandboxed, "crun")+"---\napiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: high}\nvalue: 7\n")
	write(t, filepath.Join(dir, "overhead.yaml"), classed("overhead", "  runtimeClassName: sandboxed\n  overhead: {memory: 1Mi}\n"))
	write(t, filepath.Join(dir, "selector.yaml"), classed("selector", "  runtimeClassName: sandboxed\n  nodeSelector: {disk: hdd}\n"))
	write(t, filepath.Join(dir, "priority.yaml"), classed("priority", "  priorityClassName: high\n  priority: 8\n"))
	write(t, filepath.Join(dir, "policy.yaml"), classed("policy", "  priorityClassName: high\n  preemptionPolicy: Never\n"))
	write(t, filepath.Join(dir, "nobody.yaml"), classed("nobody", "  priorityClassName: higher\n"))
	write(t, filepath.Join(dir, "same.yaml"), classed("same", "  runtimeClassName: sandboxed\n  overhead: {memory: 16Mi}\n  priorityClassName: high\n  priority: 7\n"))
	h := start(t, t.TempDir(), func(c *Config) { c.Paths = []string{dir} })
	h.until("the pod without a conflict", func() bool { return h.get("same") != nil })
	for _, want := range []string{
		"overhead.yaml:7: document 1 (Pod default/overhead): spec.overhead: Forbidden: the RuntimeClass sandboxed gives another one: remove it here",
		`selector.yaml:7: document 1 (Pod default/selector): spec.nodeSelector[disk]: Invalid value: "hdd": the RuntimeClass sandboxed asks for "ssd"`,
		"priority.yaml:7: document 1 (Pod default/priority): spec.priority: Forbidden: the PriorityClass high gives 7",
		"policy.yaml:7: document 1 (Pod default/policy): spec.preemptionPolicy: Forbidden: the PriorityClass high gives PreemptLowerPriority",
		`nobody.yaml:6: document 1 (Pod default/nobody): spec.priorityClassName: Invalid value: "higher": no manifest gives a PriorityClass of this name (known are high, system-cluster-critical, system-node-critical)`,
	} {
		if !h.hasProblem(want) {
			t.Errorf("not told: %s\n%v", want, h.Problems())
		}
	}
	for _, name := range []string{"overhead", "selector", "priority", "policy", "nobody"} {
		if h.get(name) != nil {
			t.Errorf("%s was taken in", name)
		}
	}
}

func TestPriorityClass(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "pods.yaml"), classed("none", "")+"---\n"+classed("own", "  priority: 3\n")+"---\n"+
		classed("foreign", "  priority: 4\n  priorityClassName: from-a-cluster\n")+"---\n"+classed("critical", "  priorityClassName: system-node-critical\n"))
	h := start(t, t.TempDir(), func(c *Config) { c.Paths = []string{dir} })
	h.until("pods", func() bool { return h.get("none") != nil })
	if p := h.get("none").Pod.Spec; p.Priority != nil || p.PriorityClassName != "" {
		t.Errorf("a priority from nowhere: %v %q", p.Priority, p.PriorityClassName)
	}
	write(t, filepath.Join(dir, "classes.yaml"), `
apiVersion: scheduling.k8s.io/v1
kind: PriorityClassList
items:
- {metadata: {name: low}, value: -5, globalDefault: true, preemptionPolicy: Never}
- {metadata: {name: high}, value: 5, globalDefault: true}
`)
	h.until("the default", func() bool { return h.get("none").Pod.Spec.Priority != nil })
	if !h.hasProblem("(PriorityClass high): globalDefault: the PriorityClass low is the default, too, and the lowest counts") {
		t.Errorf("two defaults are not told: %v", h.Problems())
	}
	for name, want := range map[string]int32{"none": -5, "own": 3, "foreign": 4, "critical": 2000001000} {
		if s := h.get(name).Pod.Spec; s.Priority == nil || *s.Priority != want {
			t.Errorf("%s has priority %v, want %d", name, s.Priority, want)
		}
	}
	if s := h.get("none").Pod.Spec; s.PriorityClassName != "low" || *s.PreemptionPolicy != v1.PreemptNever {
		t.Errorf("the default class gives %q %v", s.PriorityClassName, s.PreemptionPolicy)
	}
}

// An edit that names a class nobody gives does not end the pod that runs.
func TestUnknownClassKeepsEarlierVersion(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	config := func(c *Config) { c.Paths = []string{dir} }
	path := filepath.Join(dir, "pod.yaml")
	write(t, path, classed("a", ""))
	h := start(t, root, config)
	h.until("the pod", func() bool { return h.get("a") != nil })
	uid := h.get("a").Pod.UID
	write(t, path, classed("a", "  runtimeClassName: sandboxed\n"))
	for range 2 {
		h.until("the problem", func() bool { return h.hasProblem("; what it held before stays in force") && h.get("a") != nil })
		if d := h.get("a"); d.Pod.UID != uid {
			t.Fatalf("the earlier version is not in force: %+v", d)
		}
		h.stop()
		h = start(t, root, config)
	}
	write(t, filepath.Join(dir, "class.yaml"), fmt.Sprintf(sandboxed, "crun"))
	h.until("the later version", func() bool { return h.get("a") != nil && h.get("a").RuntimeHandler == "crun" })
	if h.get("a").Pod.UID == uid || len(h.Problems()) > 0 {
		t.Errorf("UID %s, problems %v", h.get("a").Pod.UID, h.Problems())
	}
}

func TestApplyWithClasses(t *testing.T) {
	root := t.TempDir()
	h := start(t, root, nil)
	a := classed("a", "  runtimeClassName: sandboxed\n  priorityClassName: high\n")
	applied, problems, err := h.Apply(t.Context(), []byte(a))
	if err != nil || len(applied) != 0 || len(problems) != 1 || problems[0].FieldPath != "spec.runtimeClassName" {
		t.Fatalf("applied %v, problems %v, %v", applied, problems, err)
	}
	class := "apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: high}\nvalue: 7\n"
	applied, problems, err = h.Apply(t.Context(), []byte(a+"---"+fmt.Sprintf(sandboxed, "crun")+"---\n"+class))
	if err != nil || len(applied) != 3 || len(problems) != 0 {
		t.Fatalf("applied %v, problems %v, %v", applied, problems, err)
	}
	for _, ref := range []Ref{{Kind: "RuntimeClass", Name: "sandboxed"}, {Kind: "PriorityClass", Name: "high"}} {
		if removed, err := h.Remove(t.Context(), ref); !removed || err != nil {
			t.Errorf("%s: removed %v, %v", ref, removed, err)
		}
	}
	h.stop()
	h = start(t, root, nil)
	h.until("the pod after a restart", func() bool { return h.get("a") != nil })
	if d := h.get("a"); d.Source != pod.SourceRun || d.RuntimeHandler != "crun" || *d.Pod.Spec.Priority != 7 {
		t.Errorf("after a restart: %+v", d)
	}
}
