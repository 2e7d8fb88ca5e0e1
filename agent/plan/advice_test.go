package plan

import (
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// advised are troubles in the words of those who tell of them, and what must be
// in the advice.
var advised = []struct {
	t    Trouble
	want string
}{
	{Trouble{Op: pod.OpPullImage, Reason: pod.ErrImageNeverPull, Message: `Container image "a:1" is not present with pull policy of Never`}, "berth images pull docker.io/a:1"},
	{Trouble{Op: pod.OpPullImage, Reason: pod.InvalidImageName, Kind: pod.Invalid, Message: "invalid reference format"}, "Correct the image's name"},
	{Trouble{Op: pod.OpPullImage, Reason: pod.ErrImagePull, Kind: pod.NotFound, Message: "pull image x: image is for linux/s390x, this machine is linux/amd64: not found: build"}, "(linux/amd64)"},
	{Trouble{Op: pod.OpPullImage, Reason: pod.RegistryUnavailable, Message: "unexpected status from HEAD request to http://r/v2/a/manifests/1: 429 Too Many Requests"}, "limits how often"},
	{Trouble{Op: pod.OpPullImage, Reason: pod.RegistryUnavailable, Message: "unexpected status from HEAD request to http://r/v2/a/manifests/1: 503 Service Unavailable"}, "log of the registry"},
	{Trouble{Op: pod.OpPullImage, Reason: pod.ErrImagePull, Kind: pod.Denied, Message: "unexpected status from HEAD request to http://r/v2/a/manifests/1: 401 Unauthorized"}, "imagePullSecrets"},
	{Trouble{Op: pod.OpPullImage, Reason: pod.RegistryUnavailable, Message: "tls: failed to verify certificate: x509: certificate signed by unknown authority"}, "CA certificate"},
	{Trouble{Op: pod.OpPullImage, Reason: pod.RegistryUnavailable, Message: "dial tcp: lookup r.example on 10.0.0.1:53: no such host"}, "DNS"},
	{Trouble{Op: pod.OpPullImage, Reason: pod.RegistryUnavailable, Message: "dial tcp 10.0.0.1:443: connect: connection refused"}, "Start the registry"},
	{Trouble{Op: pod.OpPullImage, Reason: pod.RegistryUnavailable, Message: "dial tcp 10.0.0.1:443: i/o timeout"}, "reaches the registry"},
	{Trouble{Op: pod.OpPullImage, Reason: pod.ErrImagePull, Kind: pod.Exhausted, Message: "write /x: no space left on device"}, "Free space"},
	{Trouble{Op: pod.OpPullImage, Reason: pod.ErrImagePull, Message: "something new"}, "berth images pull"},
	{Trouble{Op: pod.OpMountVolumes, Reason: pod.FailedMount, Kind: pod.NotFound, Message: `MountVolume.SetUp failed for volume "v" : secret "s" not found`}, "Create the Secret s "},
	{Trouble{Op: pod.OpMountVolumes, Reason: pod.FailedMount, Kind: pod.NotFound, Message: `MountVolume.SetUp failed for volume "v" : configmap "c" not found`}, "Create the ConfigMap c "},
	{Trouble{Op: pod.OpMountVolumes, Reason: pod.FailedMount, Kind: pod.Invalid, Message: "hostPath type check failed: /x is not a directory"}, "DirectoryOrCreate"},
	{Trouble{Op: pod.OpMountVolumes, Reason: pod.FailedMount, Message: "something new"}, "berth describe pod -n ns web"},
	{Trouble{Op: pod.OpCreateSandbox, Reason: pod.NetworkNotReady, Message: "network is not ready: x"}, "network configuration"},
	{Trouble{Op: pod.OpCreateSandbox, Reason: pod.FailedCreatePodSandBox, Message: "no address left: failed to allocate for range 0: no IP addresses available in range set"}, "network.subnets"},
	{Trouble{Op: pod.OpCreateSandbox, Reason: pod.FailedCreatePodSandBox, Message: "ns/db must end first, to make room for this pod"}, "Wait for the pods"},
	{Trouble{Op: pod.OpCreateSandbox, Reason: pod.FailedCreatePodSandBox, Message: "something new"}, "berth check"},
	{Trouble{Op: pod.OpObserve, Kind: pod.Unavailable, Message: "connection refused"}, "container runtime"},
	{Trouble{Op: pod.OpStartContainer, Reason: pod.CreateContainerConfigError, Kind: pod.NotFound, Message: "couldn't find key k in Secret ns/s"}, "Add the key k to the Secret ns/s"},
	{Trouble{Op: pod.OpStartContainer, Reason: pod.RunContainerError, Message: `the command "x" is not in the image (or not in its $PATH)`}, "x must be a program in the image, by its path or in its $PATH."},
	{Trouble{Op: pod.OpStartContainer, Reason: pod.RunContainerError, Kind: pod.Timeout, Message: "no answer within 2m0s"}, "load of this machine"},
	{Trouble{Op: pod.OpStartContainer, Reason: pod.CreateContainerError, Message: "exec: \"/usr/bin/crun\": no such file or directory"}, "Install"},
	{Trouble{Op: pod.OpStartContainer, Reason: pod.CreateContainerError, Message: "something new"}, "berth describe pod -n ns web"},
	{Trouble{Op: pod.OpPostStart, Reason: pod.PostStartHookError, Message: "exit 7"}, "postStart hook of app"},
	{Trouble{Op: pod.OpCleanup, Reason: pod.FailedKillPod, Message: "unmount: device or resource busy"}, "Find who still uses it"},
	{Trouble{Reason: pod.OOMKilled}, "Raise the memory limit of app"},
	{Trouble{Reason: exitedBadly, Message: "127"}, "127 is how shells"},
	{Trouble{Reason: exitedBadly, Message: "1"}, "berth logs -n ns web -c app --previous"},
	{Trouble{Reason: pod.Unhealthy, Message: "HTTP probe failed with statuscode: 503"}, "with 503"},
	{Trouble{Reason: pod.NodePorts, Message: "UDP port 53 is held by pod kube-system/dns"}, "another hostPort than 53"},
	{Trouble{Reason: "OutOfcpu", Message: "Pod was rejected: Node didn't have enough resource: cpu, requested: 1"}, "request of cpu"},
	{Trouble{Reason: pod.OutOfPods, Message: "Node didn't have enough resource: pods, requested: 1"}, "maxPods"},
	{Trouble{Reason: pod.Evicted, Message: `Usage of EmptyDir volume "v" exceeds the limit "1Mi"`}, "sizeLimit of the emptyDir v"},
	{Trouble{Reason: recordUnsaved, Message: "write x: no space left on device"}, "Free space"},
	{Trouble{Reason: pod.FailedValidation, Message: `unknown field "x"`, Manifest: "line 3 of /m/web.yaml"}, "Correct line 3 of /m/web.yaml."},
}

func TestAdvise(t *testing.T) {
	p := &v1.Pod{}
	p.Namespace, p.Name = "ns", "web"
	p.Spec.Containers = []v1.Container{{Name: "app"}, {Name: "other"}}
	for _, c := range advised {
		c.t.Pod, c.t.Container, c.t.Image = p, "app", "docker.io/a:1"
		if got := Advise(c.t); !strings.Contains(got, c.want) {
			t.Errorf("%s %s %q: the advice %q lacks %q", c.t.Op, c.t.Reason, c.t.Message, got, c.want)
		}
	}
}

// TestAdviceForAll sees that no reason that a pod can be held up by is left without advice.
func TestAdviceForAll(t *testing.T) {
	failing := map[pod.Op][]pod.Reason{
		pod.OpPullImage:      {pod.ErrImagePull, pod.ErrImageNeverPull, pod.InvalidImageName, pod.ImageInspectError, pod.RegistryUnavailable, pod.SignatureValidationFailed},
		pod.OpMountVolumes:   {pod.FailedMount, pod.FailedCreatePodContainer},
		pod.OpCreateSandbox:  {pod.FailedCreatePodSandBox, pod.NetworkNotReady},
		pod.OpStartContainer: {pod.CreateContainerConfigError, pod.CreateContainerError, pod.RunContainerError, imageVolumeFailed},
		pod.OpPostStart:      {pod.PostStartHookError}, pod.OpObserve: {""},
		pod.OpStopSandbox: {pod.FailedKillPod}, pod.OpRemoveSandbox: {pod.FailedKillPod}, pod.OpUnmountVolumes: {pod.FailedMount}, pod.OpCleanup: {pod.FailedKillPod},
		"": {
			pod.NodePorts, "NodeName", "NodeAffinity", "TaintToleration", "PodOSNotSupported", "PodOSSelectorNodeLabelDoesNotMatch", "SysctlForbidden", "AppArmor",
			"SupplementalGroupsPolicyNotSupported", "PodFeatureUnsupported", pod.OutOfPods, pod.Evicted, "Preempting", pod.DeadlineExceeded, pod.FailedValidation, recordUnsaved,
			pod.OOMKilled, pod.Unhealthy, condemned, exitedWell, exitedBadly, endedBySignal, failedForGood, lostContainer, slowStart, slowHook, slowInit, slowPull, slowSandbox, slowEnd,
			resizePending, resizeRefused, resizeNotDone, resettingAgain,
		},
	}
	for op, reasons := range failing {
		for _, r := range reasons {
			for kind := pod.Internal; kind <= pod.Canceled; kind++ {
				if Advise(Trouble{Op: op, Reason: r, Kind: kind, Message: "words that nobody has foreseen"}) == "" {
					t.Errorf("%s %s %s: no advice", op, r, kind)
				}
			}
		}
	}
}

// TestAdviceTable sees that each row is whole sentences, with nothing left to fill in.
func TestAdviceTable(t *testing.T) {
	open := regexp.MustCompile(`\{[a-z]+\}|\$[0-9{]`)
	for _, table := range advice {
		for _, r := range table {
			say := r.say
			if r.re != nil {
				say = regexp.MustCompile(`\$\{?[0-9]\}?`).ReplaceAllString(say, "x")
			}
			say = Trouble{}.fill(say)
			if !strings.HasSuffix(say, ".") || open.MatchString(say) || say[0] < 'A' || say[0] > 'Z' {
				t.Errorf("not a sentence: %q", say)
			}
		}
	}
}

func TestClean(t *testing.T) {
	id := strings.Repeat("0a", 32)
	for in, want := range map[string]string{
		"RegistryUnavailable: pull image r/a:1: no route": "no route",
		"container " + id + " cannot be started: x.":      "x",
		"detaching sandbox " + id + " from the network":   "detaching sandbox from the network",
		`MountVolume.SetUp failed for volume "v" : y`:     `volume "v": y`,
		"two\nlines\n":    "two lines",
		"exited with 7: ": "exited with 7",
		"":                "",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) is %q, want %q", in, got, want)
		}
	}
	if got := clean(strings.Repeat("ä", 4000)); len(got) > 1100 {
		t.Errorf("%d bytes are left of a long message", len(got))
	}
}

// TestFailuresSurvive sees what an agent's successor says before it has tried anything.
func TestFailuresSurvive(t *testing.T) {
	p := &v1.Pod{}
	p.Namespace, p.Name, p.UID = "ns", "web", "u"
	p.Spec.Containers = []v1.Container{{Name: "app", Image: "r.example/a:1"}}
	now := time.Unix(1e9, 0)
	desired := pod.Desired{Pod: p}
	first := NewState(desired, pod.Record{}, pod.Observed{At: now}, Config{})
	first.Now = now
	pull := pod.Action{Slot: pod.ImageSlot("app"), Op: pod.OpPullImage, Container: "app"}
	box := pod.Action{Slot: pod.SlotSandbox, Op: pod.OpCreateSandbox}
	start := pod.Action{Slot: pod.ContainerSlot("app"), Op: pod.OpStartContainer, Container: "app"}
	for _, a := range []pod.Action{pull, box, start} {
		first.Begin(a)
		first.Fold(pod.Result{Action: a, Err: &pod.Error{Kind: pod.Unavailable, Err: errorText("no such host")}}, now)
	}
	record := Decide(first).Record

	t.Run("told", func(t *testing.T) {
		s := NewState(desired, record, pod.Observed{At: now}, Config{})
		s.Now = now.Add(time.Minute)
		delete(s.Failures, pod.SlotSandbox)
		plan := Decide(s)
		if e := plan.Explanation; !strings.Contains(e.Cause, "no such host") || !e.Since.Equal(now) || e.Next != "It is being pulled again (try 2)." || e.Advice == "" {
			t.Errorf("after a restart: %+v", e)
		}
	})
	t.Run("outdated", func(t *testing.T) {
		box := pod.Sandbox{ID: "s", Ready: true, IPs: []string{"10.0.0.2"}, CreatedAt: now}
		c := pod.Container{ID: "c", Name: "app", SandboxID: "s", State: pod.Running, StartedAt: now.Add(time.Second)}
		s := NewState(desired, record, pod.Observed{At: now, Sandboxes: []pod.Sandbox{box}, Containers: []pod.Container{c}}, Config{})
		for slot, f := range s.Failures {
			if f.Op != pod.OpPullImage {
				t.Errorf("the failure in %s is told although what it is about has been done: %+v", slot, f)
			}
		}
		s.Now = now.Add(time.Minute)
		s.Observed.Volumes = map[string]pod.Volume{}
		if e := Decide(s).Explanation; !e.Well {
			t.Errorf("a running pod: %+v", e)
		}
	})
}

type errorText string

func (e errorText) Error() string { return string(e) }

// TestWordsOfProbes sees that what a failing probe says is taken in while it
// decides nothing, not more often than it must be, and never instead of a verdict.
func TestWordsOfProbes(t *testing.T) {
	now := time.Unix(1e9, 0)
	p := &v1.Pod{}
	p.Spec.Containers = []v1.Container{{Name: "app"}}
	s := NewState(pod.Desired{Pod: p}, pod.Record{}, pod.Observed{At: now, Containers: []pod.Container{{ID: "c", Name: "app"}}}, Config{})
	say := func(after time.Duration, verdict pod.Verdict, text string) pod.ProbeVerdict {
		s.Unsaved.Boot = false
		s.SetVerdict(pod.ProbeVerdict{Container: "c", Kind: pod.Readiness, Verdict: verdict, Message: text, At: now.Add(after)})
		return s.Record.Boot.Verdicts["c"][pod.Readiness]
	}
	if v := say(0, pod.NoVerdict, "refused"); v.Message != "refused" || v.Verdict != pod.NoVerdict || !s.Unsaved.Boot {
		t.Errorf("the first words: %+v", v)
	}
	if v := say(time.Second, pod.NoVerdict, "other"); v.Message != "refused" || s.Unsaved.Boot {
		t.Errorf("words a second later: %+v", v)
	}
	if v := say(time.Minute, pod.NoVerdict, "other"); v.Message != "other" || !s.Unsaved.Boot {
		t.Errorf("words a minute later: %+v", v)
	}
	if v := say(2*time.Minute, pod.Success, ""); v.Verdict != pod.Success {
		t.Errorf("success: %+v", v)
	}
	if v := say(3*time.Minute, pod.NoVerdict, "once"); v.Verdict != pod.Success || v.Message != "" || s.Unsaved.Boot {
		t.Errorf("one failure of a ready container: %+v", v)
	}
}

func TestExit(t *testing.T) {
	for want, got := range map[string]string{
		"exited with 3":                                 exit(3, "Error"),
		"exited with 0 (Completed)":                     exit(0, "Completed"),
		"exited with 139 (ended by signal 11, SIGSEGV)": exit(139, "Error"),
		"exited with 137 (OOMKilled)":                   exit(137, "OOMKilled"),
		"was lost (ContainerStatusUnknown)":             exit(137, "ContainerStatusUnknown"),
		"exited with 255":                               exit(255, ""),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
