package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const pagePath = "../../docs/cri.md"

// does says of each RPC what it does here, as far as api.proto leaves it open.
var does = map[string]string{
	"Version":                   "Who serves, and that it speaks v1.",
	"RunPodSandbox":             "Makes namespaces, files and the network of a pod; no pause process unless its PID namespace is shared, then a tiny init. The same name, namespace, UID and attempt as another sandbox's, or one that is being made: AlreadyExists. An attempt that fails, is cancelled or killed leaves neither name nor sandbox.",
	"StopPodSandbox":            "Kills the containers, gives the network back, lets the namespaces go. Unknown IDs succeed.",
	"RemovePodSandbox":          "Stops the sandbox if it must, removes its containers and it. Unknown IDs succeed.",
	"PodSandboxStatus":          "By ID or an unambiguous prefix, with the statuses of all containers and the time they were taken. Verbose: namespaces, files, resources, and why it is not ready.",
	"ListPodSandbox":            "Oldest first; IDs may be prefixes. A sandbox that is still being made is not listed.",
	"StreamPodSandboxes":        "ListPodSandbox in messages of about a megabyte.",
	"CreateContainer":           "From a stored image, in a ready sandbox. The same name and attempt in one pod: AlreadyExists. sandbox_config is not read: the sandbox's own is known.",
	"StartContainer":            "Once; starting a running container succeeds, an exited one is FailedPrecondition. One whose command is missing or may not be executed exits with 127 or 126 and reason ContainerCannotRun.",
	"StopContainer":             "The stop signal of the configuration, else of the image, else SIGTERM; after the timeout SIGKILL. Without a timeout, or with a negative one, SIGKILL at once. Of several calls the most impatient one counts. Unknown IDs and exited containers succeed.",
	"RemoveContainer":           "Kills it if it runs. Its log stays. Unknown IDs succeed.",
	"ListContainers":            "Oldest first; IDs may be prefixes. By ID, sandbox or the label io.kubernetes.pod.uid it takes what an index finds.",
	"StreamContainers":          "ListContainers in messages of about a megabyte.",
	"ContainerStatus":           "By ID or an unambiguous prefix, with the limits that hold now. Verbose: the first process, the cgroup.",
	"UpdateContainerResources":  "Zero keeps a value. Memory goes with swap, a quota with its period. What cannot be set is refused and nothing is recorded. The OOM score of a running process stays as it is.",
	"ReopenContainerLog":        "Opens the log's path anew; FailedPrecondition if the container does not run, and then no file is made.",
	"ExecSync":                  "Runs a command until it ends, or is killed when the timeout is over (DeadlineExceeded).",
	"Exec":                      "A URL for streams, good for one use.",
	"Attach":                    "A URL for streams, good for one use.",
	"PortForward":               "A URL for streams, good for one use.",
	"ContainerStats":            "Read at the moment of the call. Of a container that does not run only what it wrote.",
	"ListContainerStats":        "Of running containers, at most a second old.",
	"StreamContainerStats":      "ListContainerStats in messages of about a megabyte, read while they are sent.",
	"PodSandboxStats":           "Of the pod's own cgroup; of its containers added up if the pod names no cgroup parent.",
	"ListPodSandboxStats":       "Of ready pods, at most a second old.",
	"StreamPodSandboxStats":     "ListPodSandboxStats in messages of about a megabyte, read while they are sent.",
	"UpdateRuntimeConfig":       "Takes the node's pod range for the default network.",
	"Status":                    "RuntimeReady is false, with the reason, while the OCI runtime or conmon is gone, or a directory is full or read-only; NetworkReady is the network's own word. Verbose: versions, directories, what is unusable and why.",
	"CheckpointContainer":       "By CRIU, where it and an OCI runtime built with it are installed; else Unimplemented.",
	"GetContainerEvents":        "Of containers and sandboxes, filled with the state of the moment they are sent. A slow reader misses steps, never where an object got to. What ended while no runtime was there is told to who subscribes within five minutes after the start.",
	"ListMetricDescriptors":     "cAdvisor's names, always the same list.",
	"ListPodSandboxMetrics":     "Of ready pods and running containers, at most a second old. Whole numbers, as CRI has it: seconds without fractions.",
	"StreamPodSandboxMetrics":   "ListPodSandboxMetrics in messages of about a megabyte, read while they are sent.",
	"RuntimeConfig":             "The cgroup driver.",
	"UpdatePodSandboxResources": "Puts the resources on record. The caller has changed the pod's cgroup already; a sandbox has no other.",
	"ListImages":                "All images, or the one that the filter names.",
	"StreamImages":              "ListImages in messages of about a megabyte.",
	"ImageStatus":               "By ID, ID prefix, tag or digest; an answer without an image says that it is not stored.",
	"PullImage":                 "Bounded by progress, not by time. Returns the image's ID.",
	"RemoveImage":               "With all its names. Unknown images succeed.",
	"ImageFsInfo":               "Images and writable layers are on one file system.",
}

// exceptions are fields that no successful call of these tests sets. The key is a
// field, or a message followed by a dot. "elsewhere" names the test that has it.
var exceptions = map[string]struct{ verdict, why string }{
	"UpdateContainerResourcesRequest.annotations":            {"ignored", "CRI defines none"},
	"CheckpointContainerRequest.":                            {"refused", "Unimplemented where CRIU, or an OCI runtime built with it, is not installed"},
	"ImageSpec.annotations":                                  {"ignored", "what an image is chosen by is its name"},
	"ImageSpec.image_ref":                                    {"ignored", "an answer's id says the same"},
	"ImageSpec.runtime_handler":                              {"ignored", "all handlers share one store of images"},
	"AuthConfig.identity_token":                              {"works, without a test", "it is the refresh token shown to the registry's token server"},
	"AuthConfig.registry_token":                              {"elsewhere", "cri/image TestPullWithCredentials"},
	"ContainerConfig.CDI_devices":                            {"elsewhere", "cri/cdi TestApply"},
	"CDIDevice.name":                                         {"elsewhere", "cri/cdi TestRequested"},
	"HugepageLimit.":                                         {"elsewhere", "cri/ocispec TestGolden"},
	"LinuxContainerResources.hugepage_limits":                {"elsewhere", "cri/ocispec TestGolden"},
	"LinuxContainerResources.unified":                        {"elsewhere", "cri/ocispec TestGolden"},
	"LinuxContainerSecurityContext.apparmor":                 {"elsewhere", "cri/container TestAppArmorFailsClosed"},
	"LinuxContainerSecurityContext.apparmor_profile":         {"elsewhere", "cri/container TestAppArmorFailsClosed"},
	"LinuxSandboxSecurityContext.apparmor":                   {"ignored", "a sandbox runs no program of an image"},
	"LinuxContainerSecurityContext.seccomp_profile_path":     {"ignored", "deprecated: seccomp has taken its place"},
	"LinuxSandboxSecurityContext.seccomp_profile_path":       {"ignored", "deprecated: seccomp has taken its place"},
	"LinuxSandboxSecurityContext.seccomp":                    {"ignored", "a sandbox runs no program of an image"},
	"LinuxSandboxSecurityContext.readonly_rootfs":            {"ignored", "a sandbox has no root file system"},
	"LinuxSandboxSecurityContext.run_as_user":                {"ignored", "a sandbox runs no program of an image"},
	"LinuxSandboxSecurityContext.run_as_group":               {"ignored", "a sandbox runs no program of an image"},
	"LinuxSandboxSecurityContext.supplemental_groups":        {"ignored", "a sandbox runs no program of an image"},
	"LinuxSandboxSecurityContext.supplemental_groups_policy": {"ignored", "a sandbox runs no program of an image"},
	"LinuxContainerSecurityContext.selinux_options":          {"elsewhere", "cri/label TestContainersShareTheirPodsLevel"},
	"LinuxSandboxSecurityContext.selinux_options":            {"elsewhere", "cri/label TestContainersShareTheirPodsLevel"},
	"SELinuxOption.":                                         {"elsewhere", "cri/label TestContainersShareTheirPodsLevel"},
	"IDMapping.container_id":                                 {"refused", "a mapping begins with 0, as in CRI today"},
	"RuntimeFeatures.user_namespaces_host_network":           {"refused", "a pod with users of its own has a network of its own"},
	"Metric.timestamp":                                       {"ignored", "0: a metric is never older than a second"},
	"PsiData.":                                               {"elsewhere", "stats/report TestPressure"},
	"PsiStats.":                                              {"elsewhere", "stats/report TestPressure"},
	"CpuUsage.psi":                                           {"elsewhere", "stats/report TestPressure"},
	"MemoryUsage.psi":                                        {"elsewhere", "stats/report TestPressure"},
	"IoUsage.":                                               {"elsewhere", "stats/report TestPressure"},
	"ContainerStats.io":                                      {"elsewhere", "stats/report TestPressure"},
	"LinuxPodSandboxStats.io":                                {"elsewhere", "stats/report TestPressure"},
	"PodSandboxConfig.windows":                               {"ignored", "Linux only"},
	"ContainerConfig.windows":                                {"ignored", "Linux only"},
	"ContainerResources.windows":                             {"ignored", "Linux only"},
	"PodSandboxStats.windows":                                {"ignored", "Linux only"},
	"UpdateContainerResourcesRequest.windows":                {"ignored", "Linux only"},
}

// page is docs/cri.md.
type page struct {
	rpcs, fields []string
	rows         map[string]string // by field
}

// newPage describes what the tests of this run did, and says what is not accounted for.
func newPage() (*page, error) {
	p := &page{rows: map[string]string{}}
	p.rpcs, p.fields = described()
	var errs []error
	for _, r := range p.rpcs {
		if does[r] == "" {
			errs = append(errs, fmt.Errorf("it does not say what %s does", r))
		}
		if len(seen.rpcs[r]) == 0 {
			errs = append(errs, fmt.Errorf("no test calls %s over a socket", r))
		}
	}
	for _, f := range p.fields {
		message, _, _ := strings.Cut(f, ".")
		e, excepted := exceptions[f]
		if !excepted {
			e, excepted = exceptions[message+"."]
		}
		if !excepted && strings.HasPrefix(message, "Windows") {
			e.verdict, e.why, excepted = "ignored", "Linux only", true
		}
		switch test := first(seen.fields[f]); {
		case excepted && test != "" && e.verdict == "refused":
			errs = append(errs, fmt.Errorf("%s is said to be refused, but %s sets it", f, test))
		case excepted:
			p.rows[f] = e.verdict + ": " + e.why
			if e.verdict == "elsewhere" {
				p.rows[f] = "works; " + e.why
				errs = append(errs, exists(e.why))
			}
		case test == "":
			errs = append(errs, fmt.Errorf("no successful call of any test sets %s, and it is not entered as ignored or refused", f))
		default:
			p.rows[f] = "works; " + test
		}
	}
	return p, errors.Join(errs...)
}

// exists checks that a test "package TestName" is there.
func exists(where string) error {
	dir, name, _ := strings.Cut(where, " ")
	files, err := filepath.Glob(filepath.Join("../..", dir, "*_test.go"))
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && regexp.MustCompile(`func `+regexp.QuoteMeta(name)+`\(`).Match(b) {
			return nil
		}
	}
	return fmt.Errorf("there is no test %s", where)
}

const opening = `# The Container Runtime Interface here

Every RPC of CRI v1 (cri-api v0.36.3) and every field of its messages. The page is written and checked by ` + "`go test ./cri/server`" + `: each RPC is
called over a socket by the test that is named, and each field that "works" is set in a successful request or answer of the test that is
named. "ignored" and "refused" come with the reason.

Every call passes the same chain, by socket and within the agent: a deadline (the caller's, else two minutes; four for RunPodSandbox; as much
more as a timeout in the request says; none for PullImage, which is bounded by progress, and for ExecSync without a timeout), messages of
at most 16 MiB, one mapping of errors to codes. IDs may be shortened as far as they stay unambiguous.

## RPCs
| RPC | what it does | test |
|---|---|---|
`

func (p *page) text() string {
	var b strings.Builder
	b.WriteString(opening)
	for _, r := range p.rpcs {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r, does[r], first(seen.rpcs[r]))
	}
	b.WriteString("\n## Fields\n| field | |\n|---|---|\n")
	for _, f := range p.fields {
		fmt.Fprintf(&b, "| %s | %s |\n", f, p.rows[f])
	}
	return b.String()
}

// holds compares the page as it is with what it may say: of several tests that
// do one thing it may name any.
func (p *page) holds() error {
	b, err := os.ReadFile(pagePath)
	if err != nil {
		return err
	}
	is, want := strings.Split(string(b), "\n"), strings.Split(p.text(), "\n")
	if len(is) != len(want) {
		return fmt.Errorf("it has %d lines and not %d", len(is), len(want))
	}
	for i := range want {
		if is[i] != want[i] && !p.means(is[i], want[i]) {
			return fmt.Errorf("line %d is %q and not %q", i+1, is[i], want[i])
		}
	}
	return nil
}

// means tells whether a row says the same of the same, by another test that did it.
func (p *page) means(is, want string) bool {
	test := regexp.MustCompile(`(Test\w+) \|$`)
	a, b := test.FindStringSubmatch(is), test.FindStringSubmatch(want)
	if a == nil || b == nil || strings.TrimSuffix(is, a[0]) != strings.TrimSuffix(want, b[0]) {
		return false
	}
	key := strings.TrimSpace(strings.Split(is, "|")[1])
	return seen.fields[key][a[1]] || seen.rpcs[key][a[1]]
}

// TestPageIsComplete holds the page to the services' descriptors, whatever tests run.
func TestPageIsComplete(t *testing.T) {
	if *rewrite {
		t.Skip("the page is being written")
	}
	b, err := os.ReadFile(pagePath)
	if err != nil {
		t.Fatal(err)
	}
	rpcs, fields := described()
	if len(rpcs) < 40 || len(fields) < 460 {
		t.Fatalf("only %d RPCs and %d fields were found", len(rpcs), len(fields))
	}
	for _, key := range slices.Concat(rpcs, fields) {
		if !strings.Contains(string(b), "\n| "+key+" | ") {
			t.Errorf("docs/cri.md does not tell of %s", key)
		}
	}
	for r := range does {
		if !slices.Contains(rpcs, r) {
			t.Errorf("%s is no RPC", r)
		}
	}
	for f := range exceptions {
		if !slices.Contains(fields, f) && !slices.ContainsFunc(fields, func(g string) bool { return strings.HasPrefix(g, f) }) {
			t.Errorf("%s is no field", f)
		}
	}
}
