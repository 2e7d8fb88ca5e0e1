package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// configure gives the agent a configuration file with these fields at its next Start.
func (a *Agent) configure(fields string) {
	a.T.Helper()
	path := filepath.Join(a.Dir, "config.yaml")
	if err := os.WriteFile(path, []byte("apiVersion: berth.dev/v1alpha1\nkind: Configuration\n"+fields), 0o600); err != nil {
		a.T.Fatal(err)
	}
	a.Flags = append(a.Flags, "--config", path)
}

// ended returns a check for a pod that failed as a whole, with this reason and text in its message.
func ended(reason, text string) func(*v1.Pod) error {
	return func(p *v1.Pod) error {
		if s := p.Status; s.Phase != v1.PodFailed || s.Reason != reason || !strings.Contains(s.Message, text) {
			return fmt.Errorf("phase %s, reason %q, message %q; want Failed, %q, %q", s.Phase, s.Reason, s.Message, reason, text)
		}
		return nil
	}
}

// event checks that there is a Warning of the pod with this reason and text.
func (a *Agent) event(name, reason, text string) {
	a.T.Helper()
	Eventually(a.T, 10*time.Second, func() error {
		out := a.Must("get", "events")
		for _, line := range strings.Split(out, "\n") {
			if strings.Contains(line, name) && strings.Contains(line, reason) && strings.Contains(line, "Warning") && strings.Contains(line, text) {
				return nil
			}
		}
		return fmt.Errorf("no event %s of %s with %q:\n%s", reason, name, text, out)
	})
}

// TestRejections places a pod for each reason that a node refuses one for. Each
// is Failed for good, tells why, and starts nothing.
func TestRejections(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.configure(`
nodeName: here
nodeLabels: {disk: ssd}
allowedUnsafeSysctls: ["net.core.*"]
systemReserved: {memory: 64Mi}
`)
	a.Start()
	a.ImportBusybox()
	a.Place("good.yaml", podOf("good", "    ports: [{containerPort: 80, hostPort: 18472}]", "  nodeSelector: {disk: ssd, kubernetes.io/os: linux, kubernetes.io/hostname: here}\n  securityContext: {sysctls: [{name: net.core.somaxconn, value: '321'}, {name: net/ipv4/ip_unprivileged_port_start, value: '77'}]}"))
	requests := func(what string) string { return "    resources: {requests: {" + what + "}, limits: {" + what + "}}" }
	cases := []struct{ name, container, spec, reason, message string }{
		{"sysctl", "", "  securityContext: {sysctls: [{name: kernel.msgmax, value: '65536'}]}", "SysctlForbidden", `Pod was rejected: forbidden sysctl: "kernel.msgmax" not allowlisted`},
		{"selector", "", "  nodeSelector: {disk: hdd}", "NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"},
		{"affinity", "", "  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: DoesNotExist}]}]}}}", "NodeAffinity", "Predicate NodeAffinity failed"},
		{"cpu", requests("cpu: '1000'"), "", "OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: 0, capacity: "},
		{"memory", requests("memory: 64Ti"), "", "OutOfmemory", "Node didn't have enough resource: memory, requested: 70368744177664, used: 0, capacity: "},
		{"ephemeral", requests("ephemeral-storage: 1Pi"), "", "OutOfephemeral-storage", "Node didn't have enough resource: ephemeral-storage"},
		{"hugepages", requests("hugepages-2Mi: 1Ti, memory: 1Mi, cpu: 1m"), "", "OutOfhugepages-2Mi", "Node didn't have enough resource: hugepages-2Mi"},
		{"extended", requests("example.com/gpu: 1"), "", "OutOfexample.com/gpu", "without a cluster it runs no device plugins"},
		{"port", "    ports: [{containerPort: 80, hostPort: 18472, hostIP: 127.0.0.1}]", "", "NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports: TCP port 18472 of 127.0.0.1 is held by pod default/good"},
		{"os-label", "", "", "PodOSSelectorNodeLabelDoesNotMatch", "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"},
		{"os", "", "  os: {name: windows}", "PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"},
	}
	if _, err := os.Stat("/sys/module/apparmor"); os.IsNotExist(err) {
		for _, profile := range []string{"{type: RuntimeDefault}", "{type: Localhost, localhostProfile: some}"} {
			cases = append(cases, struct{ name, container, spec, reason, message string }{
				"apparmor" + fmt.Sprint(len(profile)), "    securityContext: {appArmorProfile: " + profile + "}", "", "AppArmor", "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host"})
		}
	} else {
		t.Log("AppArmor is on here: that a profile is refused without it is not seen")
	}
	a.Wait("good", 30*time.Second, Ready)
	for _, c := range cases {
		manifest := podOf(c.name, c.container, c.spec)
		if c.name == "os-label" {
			manifest = strings.Replace(manifest, "metadata: {", "metadata: {labels: {kubernetes.io/os: plan9}, ", 1)
		}
		a.Place(c.name+".yaml", manifest)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			a := a.For(t)
			p := a.Wait(c.name, 20*time.Second, ended(c.reason, c.message))
			if len(p.Status.ContainerStatuses) > 0 || p.Status.QOSClass == "" {
				t.Errorf("a pod that was refused has the status %+v", p.Status)
			}
			a.event(c.name, c.reason, strings.TrimPrefix(c.message, "Pod was rejected: "))
			_, plain, _ := strings.Cut(c.message, ": ")
			if _, rest, ok := strings.Cut(plain, " failed: "); ok && strings.HasPrefix(plain, "Predicate ") {
				plain = rest
			}
			a.why(c.name, "This node refuses the pod", plain)
		})
	}
	t.Run("allowed sysctls", func(t *testing.T) {
		if out := a.For(t).Must("exec", "good", "--", "cat", "/proc/sys/net/core/somaxconn", "/proc/sys/net/ipv4/ip_unprivileged_port_start"); out != "321\n77\n" {
			t.Errorf("the container sees %q", out)
		}
	})
	t.Run("seLinuxOptions without SELinux", func(t *testing.T) {
		if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
			t.Skip("SELinux is on here: its options have their effect")
		}
		a := a.For(t)
		a.Place("label.yaml", podOf("label", "    securityContext: {seLinuxOptions: {level: 's0:c1,c2'}}", ""))
		a.Wait("label", 30*time.Second, Ready)
		a.event("label", "SELinuxDisabled", "seLinuxOptions have no effect")
		if out := a.Must("describe", "pod", "label"); !strings.Contains(out, "Note:              seLinuxOptions have no effect") {
			t.Errorf("berth describe does not say it:\n%s", out)
		}
	})
	t.Run("a restart changes no mind", func(t *testing.T) {
		a := a.For(t)
		a.Stop()
		a.Start()
		a.Wait("good", 20*time.Second, Ready)
		a.Wait("selector", 10*time.Second, ended("NodeAffinity", "didn't match"))
	})
}

func TestOutOfPods(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Flags = append(a.Flags, "--max-pods=1")
	a.Start()
	a.ImportBusybox()
	a.Place("first.yaml", podOf("first", "", ""))
	a.Wait("first", 30*time.Second, Ready)
	a.Place("second.yaml", podOf("second", "", ""))
	a.Wait("second", 20*time.Second, ended("OutOfpods", "Node didn't have enough resource: pods, requested: 1, used: 1, capacity: 1"))
}

// TestPreemption fills a node with a pod that takes its time to end, and places
// one of a critical class beside it: the first makes room, and only then does
// the second begin.
func TestPreemption(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.configure("maxPods: 2\n")
	a.Start()
	a.ImportBusybox()
	slow := strings.NewReplacer("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 20", `trap "exit 0" TERM`, `trap "sleep 2; exit 3" TERM`)
	a.Place("kept.yaml", podOf("kept", "", "  priority: 7"))
	a.Place("victim.yaml", slow.Replace(podOf("victim", "", "")))
	a.Wait("kept", 30*time.Second, Ready)
	a.Wait("victim", 30*time.Second, Ready)

	a.Place("critical.yaml", podOf("critical", "", "  priorityClassName: system-node-critical"))
	critical := a.Wait("critical", 40*time.Second, Ready)
	victim := a.Wait("victim", 10*time.Second, ended("Preempting", "Preempted in order to admit critical pod"))
	a.event("victim", "Preempting", "Preempted in order to admit critical pod")
	if s := victim.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 3 {
		t.Errorf("the pod was not let end by itself: %+v", victim.Status.ContainerStatuses[0].State)
	} else if begun := critical.Status.ContainerStatuses[0].State.Running.StartedAt; begun.Time.Before(s.FinishedAt.Time) {
		t.Errorf("the critical pod began at %v, before the room was made at %v", begun, s.FinishedAt)
	}
	disrupted := false
	for _, c := range victim.Status.Conditions {
		if c.Type == v1.DisruptionTarget {
			disrupted = c.Status == v1.ConditionTrue && c.Reason == v1.PodReasonTerminationByKubelet && c.Message == "Pod was preempted by Kubelet to accommodate a critical pod."
		}
	}
	if !disrupted {
		t.Errorf("the preempted pod has the conditions %+v", victim.Status.Conditions)
	}
	a.Wait("kept", time.Second, Ready)

	t.Run("an agent killed on the way goes on", func(t *testing.T) {
		a := a.For(t)
		a.Unplace("victim.yaml")
		a.WaitGone("victim", 20*time.Second)
		a.Place("more.yaml", podOf("more", "", "  priority: 2000001000"))
		Eventually(t, 20*time.Second, func() error {
			if out := a.Must("get", "events"); !strings.Contains(out, "waits for the end of default/kept") {
				return fmt.Errorf("nobody is asked to make room:\n%s", out)
			}
			return nil
		})
		a.Kill9()
		a.Start()
		a.Wait("kept", 30*time.Second, ended("Preempting", ""))
		a.Wait("more", 30*time.Second, Ready)
		a.Wait("critical", time.Second, Ready)
	})
}

// writing is a pod whose first container writes 5 MiB to a path and stays; it
// may have a second one that does nothing.
func writing(name, path, first, spec string, more ...string) string {
	p := podOf(name, first, spec)
	p = strings.Replace(p, "trap", "dd if=/dev/zero of="+path+" bs=1M count=5; sync; trap", 1)
	return p + strings.Join(more, "")
}

func TestStorageLimits(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	a.ImportBusybox()
	limit := func(size string) string { return "    resources: {limits: {ephemeral-storage: " + size + "}}" }
	idle := func(size string) string {
		return "  - {name: idle, image: " + Busybox + ", command: [sleep, '1000'], resources: {limits: {ephemeral-storage: " + size + "}}}\n"
	}
	const volume = "  volumes: [{name: v, emptyDir: {%s}}]"
	mounted := "    volumeMounts: [{name: v, mountPath: /v}]"
	cases := []struct{ name, manifest, message string }{
		{"volume", writing("volume", "/v/file", mounted, fmt.Sprintf(volume, "sizeLimit: 2Mi")), `Usage of EmptyDir volume "v" exceeds the limit "2Mi". `},
		{"layer", writing("layer", "/file", limit("3Mi"), "", idle("100Mi")), `Container c exceeded its local ephemeral storage limit "3Mi". `},
		{"pod", writing("pod", "/v/file", mounted+"\n"+limit("1Mi"), fmt.Sprintf(volume, ""), idle("2Mi")), "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "},
		{"logs", strings.Replace(podOf("logs", limit("1Mi"), ""), "trap", "yes 0123456789012345678901234567890123456789 | head -n 50000; trap", 1), "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "},
	}
	for _, c := range cases {
		a.Place(c.name+".yaml", c.manifest)
	}
	a.Place("within.yaml", writing("within", "/v/file", mounted+"\n"+limit("100Mi"), fmt.Sprintf(volume, "sizeLimit: 50Mi")))
	a.Place("critical-volume.yaml", writing("critical-volume", "/v/file", mounted, "  priorityClassName: system-node-critical\n"+fmt.Sprintf(volume, "sizeLimit: 2Mi")))
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			a := a.For(t)
			p := a.Wait(c.name, 60*time.Second, ended("Evicted", c.message))
			if p.Status.Message != c.message {
				t.Errorf("message %q, want %q", p.Status.Message, c.message)
			}
			for _, cond := range p.Status.Conditions {
				if cond.Type == v1.DisruptionTarget {
					t.Errorf("an eviction for its own limits is no disruption: %+v", cond)
				}
			}
			a.event(c.name, "Evicted", strings.TrimSpace(c.message))
		})
	}
	a.Wait("within", time.Second, Ready)
	a.Wait("critical-volume", time.Second, Ready)
	if log := a.Log(2000); !strings.Contains(log, "critical pod exceeds its storage limits") {
		t.Error("that a critical pod exceeds its limits is not told")
	}
}

func TestPodPidsLimit(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.configure("podPidsLimit: 30\n")
	a.Start()
	a.ImportBusybox()
	a.Place("many.yaml", strings.Replace(podOf("many", "", "  restartPolicy: Never"), "trap", "i=0; while [ $i -lt 100 ]; do echo started $i; sleep 1000 & i=$((i+1)); done; echo all of them; trap", 1))
	a.Wait("many", 30*time.Second, Phase(v1.PodFailed))
	if out := a.Must("logs", "many"); !strings.Contains(out, "started 20\n") || strings.Contains(out, "started 30\n") || strings.Contains(out, "all of them") {
		t.Errorf("with 30 processes the pod came this far:\n%s", out)
	}
}
