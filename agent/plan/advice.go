package plan

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// Trouble is what advice is asked for.
type Trouble struct {
	// Op is the action that failed; empty for what is no action's failure: a
	// container's end, a probe, a rejection.
	Op      pod.Op
	Reason  pod.Reason
	Kind    pod.Kind
	Message string
	// Pod and Container are concerned; Image is the one that is to be pulled.
	Pod       *v1.Pod
	Container pod.ContainerName
	Image     string
	// Manifest is the file and the line that a manifest's problem is about.
	Manifest string
}

// rule is one row of the table: a trouble that fits every column that is not
// empty is answered with say. Reasons and messages come from the API, the
// container runtime, CNI plugins and registries: the patterns look for what
// those have said for years, and a trouble whose words are new falls through to
// the last row of its reason.
type rule struct {
	ops     []pod.Op
	reasons []pod.Reason
	kinds   []pod.Kind
	re      *regexp.Regexp
	// say is one imperative sentence. $1 is the first group of re; in braces stand
	// {pod}, {container}, {image}, {registry}, and the commands {logs}, {previous},
	// {describe}, {debug}.
	say string
}

// advice is the whole table, in the order in which it is gone through.
var advice = [][]rule{foreignAdvice, imageAdvice, volumeAdvice, sandboxAdvice, startAdvice, rejectionAdvice, lifeAdvice, manifestAdvice, hostAdvice}

// Advise says in one sentence what a person can do about t, "" if there is
// nothing to be done. It is pure.
func Advise(t Trouble) string {
	for _, table := range advice {
		for i := range table {
			if text, ok := table[i].apply(t); ok {
				return text
			}
		}
	}
	return ""
}

func (r *rule) apply(t Trouble) (string, bool) {
	if len(r.ops) > 0 && !slices.Contains(r.ops, t.Op) || len(r.reasons) > 0 && !slices.Contains(r.reasons, t.Reason) || len(r.kinds) > 0 && !slices.Contains(r.kinds, t.Kind) {
		return "", false
	}
	say := r.say
	if r.re != nil {
		at := r.re.FindStringSubmatchIndex(t.Message)
		if at == nil {
			return "", false
		}
		say = string(r.re.ExpandString(nil, say, t.Message, at))
	}
	return t.fill(say), true
}

// fill replaces what stands in braces.
func (t Trouble) fill(say string) string {
	if !strings.Contains(say, "{") {
		return say
	}
	name, ns, alone := "POD", "", true
	if t.Pod != nil {
		name = t.Pod.Name
		if t.Pod.Namespace != "" && t.Pod.Namespace != "default" {
			ns = " -n " + t.Pod.Namespace
		}
		alone = len(t.Pod.Spec.Containers)+len(t.Pod.Spec.InitContainers)+len(t.Pod.Spec.EphemeralContainers) <= 1
	}
	of := ""
	if t.Container != "" && !alone {
		of = " -c " + string(t.Container)
	}
	return strings.NewReplacer(
		"{pod}", name, "{container}", string(t.Container), "{image}", t.Image, "{manifest}", t.Manifest, "{registry}", registryOf(t.Image),
		"{logs}", "berth logs"+ns+" "+name+of, "{previous}", "berth logs"+ns+" "+name+of+" --previous",
		"{describe}", "berth describe pod"+ns+" "+name, "{debug}", "berth debug"+ns+" "+name, "{condition}", "berth set-condition"+ns+" "+name,
		"{resize}", "berth resize"+ns+" "+name, "{stop}", "berth stop"+ns+" "+name,
	).Replace(say)
}

// registryOf is the registry that an image reference names.
func registryOf(image string) string {
	first, _, more := strings.Cut(image, "/")
	if more && (strings.ContainsAny(first, ".:") || first == "localhost") {
		return first
	}
	return "docker.io"
}

// noise is what a person has no use for in a message: IDs of things that have
// names, words of classification, and what the rest of the sentence has said
// already.
var noise = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`^(?:RegistryUnavailable|SignatureValidationFailed|ImageVolumeMountFailed): `), ""},
	{regexp.MustCompile(`container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:`), ""},
	{regexp.MustCompile(`^pull image \S+: `), ""},
	{regexp.MustCompile(`container [0-9a-f]{64} cannot be started: `), ""},
	{regexp.MustCompile(`\b(sandbox|container) [0-9a-f]{64}\b`), "$1"},
	{regexp.MustCompile(`(?:invalid argument|failed precondition|invalid container configuration): `), ""},
	{regexp.MustCompile(`MountVolume\.\w+ failed for volume ("[^"]*") : `), "volume $1: "},
	{regexp.MustCompile(`^Predicate \w+ failed: `), ""},
	{regexp.MustCompile(`: put it there, or correct localhostProfile\b|; set command in the pod$|: install it \(Debian: [^)]*\)`), ""},
	// What the image store advises itself; the advice here knows more of the pod.
	{regexp.MustCompile(`: (?:give credentials that may pull it \(imagePullSecrets\), or check that they have not expired|` +
		`check that the registry runs and that this machine reaches it; it is tried again|build or push the image again|` +
		`the repository exists: check the tag or digest|check the name's spelling and, for a private repository, the pull secret|` +
		`build or choose an image for this machine's architecture|free space on the image file system, or remove images)$`), ""},
}

// clean is message without its noise, on one line and without a full stop.
func clean(message string) string {
	message = strings.Join(strings.Fields(message), " ")
	for _, n := range noise {
		message = n.re.ReplaceAllString(message, n.by)
	}
	const most = 1000
	if len(message) > most {
		message = strings.ToValidUTF8(message[:most], "") + "..."
	}
	return strings.TrimRight(message, ".: ")
}

// sentence puts a message into a format that ends with a full stop.
func sentence(format, message string) string { return fmt.Sprintf(format, clean(message)) }
