package plan

import (
	"regexp"

	"github.com/berthd/berth/agent/pod"
)

var starting = []pod.Op{pod.OpStartContainer}

// Reasons that explanations give beside those of a status.
const (
	exitedWell     pod.Reason = "exited with 0"
	exitedBadly    pod.Reason = "exited"
	endedBySignal  pod.Reason = "ended by a signal"
	failedForGood  pod.Reason = "failed for good"
	condemned      pod.Reason = "condemned by a probe"
	slowStart      pod.Reason = "startup probe"
	slowHook       pod.Reason = "postStart hook runs"
	slowInit       pod.Reason = "init container runs"
	slowPull       pod.Reason = "image is being pulled"
	slowVolumes    pod.Reason = "volumes are being set up"
	slowSandbox    pod.Reason = "sandbox is being made"
	slowEnd        pod.Reason = "grace period runs"
	lostContainer  pod.Reason = "lost"
	resizePending  pod.Reason = "resize waits"
	resizeRefused  pod.Reason = "resize refused"
	resizeNotDone  pod.Reason = "resize fails"
	resettingAgain pod.Reason = "all containers restart"
)

// startAdvice is about containers that cannot be made or started.
var startAdvice = append(missingObject(pod.OpStartContainer), []rule{
	{ops: starting, re: regexp.MustCompile(`env file "([^"]+)" of volume "([^"]+)".*no such file`),
		say: "Have the file $1 written to the volume $2 before {container} starts (by an init container), or mark the reference optional."},
	{ops: starting, re: regexp.MustCompile(`env file "([^"]+)" of volume "([^"]+)"|key "[^"]+" not found in file "([^"]+)"`), say: "Correct the file of variables $1$3: a line is KEY='value'."},
	{ops: starting, re: regexp.MustCompile(`the command "([^"]+)" is not in the image`),
		say: "Correct command (or args) of {container}: $1 must be a program in the image, by its path or in its $$PATH."},
	{ops: starting, re: regexp.MustCompile(`the command is not in the image`), say: "Correct command (or args) of {container}: it must be a program in the image."},
	{ops: starting, re: regexp.MustCompile(`the command (?:"([^"]+)" )?may not be executed`),
		say: "Name an executable file as the command of {container}: not a directory, and with the x permission for the user that it runs as."},
	{ops: starting, re: regexp.MustCompile(`not a program for this machine|exec format error`),
		say: "Use an image for this machine's processor, or give a script its #! line."},
	{ops: starting, re: regexp.MustCompile(`no command`), say: "Set command in the pod, or an entrypoint in the image: neither says what to run."},
	{ops: starting, re: regexp.MustCompile(`working directory`), say: "Correct workingDir of {container}: it must be a directory that the container's user may enter."},
	{ops: starting, re: regexp.MustCompile(`mount of "([^"]+)": one of its source and its place in the image is a directory`),
		say: "Correct the mountPath: a directory can be mounted on a directory only, and a file of a volume, by subPath, on a file."},
	{ops: starting, re: regexp.MustCompile(`runAsUser breaks non-root policy`), say: "Set runAsUser to another user than 0, or remove runAsNonRoot."},
	{ops: starting, re: regexp.MustCompile(`non-numeric user \(([^)]+)\)`), say: "Set runAsUser to the number of the image's user $1, so that it can be seen not to be root."},
	{ops: starting, re: regexp.MustCompile(`runAsNonRoot`), say: "Set runAsUser to another user than 0, use an image whose user is not root, or remove runAsNonRoot."},
	{ops: starting, re: regexp.MustCompile(`(user|group) "([^"]+)" is not in the image`), say: "Set runAsUser (or runAsGroup) to a number, or add the $1 $2 to the image."},
	{ops: starting, re: regexp.MustCompile(`failed to expand subPathExpr "[^"]*": missing value for "([^"]+)"`), say: "Give {container} the variable $1 (env), or correct subPathExpr."},
	{ops: starting, re: regexp.MustCompile(`subpath "([^"]+)" not within volume path`), say: "Correct the subPath $1, or the symbolic link in the volume: it must lead to a path within the volume."},
	{ops: starting, re: regexp.MustCompile(`(?i)subPath`), say: "Correct the subPath of the volume mount, or create the path in the volume."},
	{ops: starting, re: regexp.MustCompile(`seccomp profile (\S+) is not on this node`), say: "Put the profile there, or correct localhostProfile: $1 is the file that is looked for."},
	{ops: starting, re: regexp.MustCompile(`(?i)seccomp`), say: "Correct the seccomp profile: the file must be JSON as the OCI runtime understands it."},
	{ops: starting, re: regexp.MustCompile(`(?i)apparmor`), say: "Load the AppArmor profile on the host (apparmor_parser), or remove it from the pod."},
	{ops: starting, re: regexp.MustCompile(`(?i)memory limit is too small`), say: "Raise the memory limit of {container}: its first process does not fit in."},
	{ops: starting, re: regexp.MustCompile(`(?i)does not lie on a shared mount`), say: "Make the mount shared on the host (mount --make-rshared), or remove mountPropagation."},
	{ops: starting, re: regexp.MustCompile(`(?i)cannot be mounted in a user namespace|idmap`), say: "Use a volume on a file system that can be idmapped, or set hostUsers: true."},
	{ops: starting, re: regexp.MustCompile(`(?i)no space left|disk quota exceeded`), say: "Free space on the filesystem that the message names (df)."},
	{ops: starting, re: regexp.MustCompile(`(?i)read-only file system`),
		say: "Make the filesystem that the message names writable again; if it is the container's own, set readOnlyRootFilesystem to false or mount a volume there."},
	{ops: starting, re: regexp.MustCompile(`(?i)(crun|runc|conmon)[^:]*: (?:no such file|executable file not found|not found)|(?:exec|fork/exec)[: ]+"?(\S*(?:crun|runc|conmon))`),
		say: "Install $1$2 again, where the agent's configuration or $$PATH has it (\"berth check\" shows where)." + corrected},
	{ops: starting, kinds: []pod.Kind{pod.Timeout}, say: "Look at the load of this machine and at its disks: the container runtime has not answered in time."},
	{ops: starting, kinds: []pod.Kind{pod.Invalid, pod.NotFound}, say: "Correct in the manifest what the message names."},
	{ops: starting, say: "See {describe}, \"berth check\" for what the host lacks, and the agent's log."},
}...)

// lifeAdvice is about containers that run, and about those that end.
var lifeAdvice = []rule{
	{ops: []pod.Op{pod.OpPostStart}, say: "Correct the postStart hook of {container}, or what it calls: when it fails, the container is ended and started again."},
	{reasons: []pod.Reason{pod.OOMKilled}, say: "Raise the memory limit of {container}, or find out what takes so much: {previous}."},
	{reasons: []pod.Reason{condemned}, say: "Correct the probe (or give it a longer timeout or a higher failureThreshold), or find out why {container} does not answer it: {previous}."},
	{reasons: []pod.Reason{exitedWell}, say: "Give {container} a command that goes on, or set restartPolicy to OnFailure or Never if its end is intended."},
	{reasons: []pod.Reason{endedBySignal}, say: "Read what {container} said last: {previous}."},
	{reasons: []pod.Reason{exitedBadly}, re: regexp.MustCompile(`^127$`), say: "Read what {container} said last: {previous}; 127 is how shells say that a command was not found."},
	{reasons: []pod.Reason{exitedBadly}, re: regexp.MustCompile(`^126$`), say: "Read what {container} said last: {previous}; 126 is how shells say that a command is not executable."},
	{reasons: []pod.Reason{exitedBadly}, say: "Read what {container} said last: {previous}."},
	{reasons: []pod.Reason{failedForGood}, re: regexp.MustCompile(`OOMKilled`), say: "Raise the memory limit of {container}, or find out what takes so much: {logs}." + again},
	{reasons: []pod.Reason{failedForGood}, say: "Read what {container} said: {logs}." + again},
	{reasons: []pod.Reason{lostContainer}, say: "Find out what ended it: the host's log around that time tells (dmesg, the agent's log); a restart of the machine does so too."},
	{reasons: []pod.Reason{slowInit}, say: "See what {container} waits for: {logs}."},
	{reasons: []pod.Reason{slowHook}, say: "If that takes too long, look at what the postStart hook of {container} waits for: the container counts as not started until its hook ends."},
	{reasons: []pod.Reason{slowVolumes}, re: regexp.MustCompile(`(.+)`),
		say: "If that takes long, see whether the file system of each hostPath answers (ls $1): one whose server is gone hangs."},
	{reasons: []pod.Reason{slowSandbox}, say: "If that takes long, see whether a CNI plugin hangs (ps) and what the agent's log says."},
	{reasons: []pod.Reason{slowEnd}, say: "Wait, or end it sooner: {stop} --force --grace-period 0."},
	{reasons: []pod.Reason{slowPull}, say: "If that takes too long, check that the registry {registry} answers and how fast the network is; only some pulls run at a time (parallelPulls of the agent's configuration)."},
	{reasons: []pod.Reason{pod.Unhealthy, slowStart}, re: regexp.MustCompile(`(?i)connection refused`),
		say: "Check that {container} listens on the port that its probe asks, and on all addresses (0.0.0.0), not on 127.0.0.1 only: {logs}."},
	{reasons: []pod.Reason{pod.Unhealthy, slowStart}, re: regexp.MustCompile(`(?i)statuscode: (\d+)`), say: "Find out why {container} answers its probe with $1: {logs}."},
	{reasons: []pod.Reason{pod.Unhealthy, slowStart}, re: regexp.MustCompile(`(?i)timed? ?out|deadline exceeded`),
		say: "Find out why {container} does not answer in time ({logs}), or raise the probe's timeoutSeconds."},
	{reasons: []pod.Reason{pod.Unhealthy}, say: "Find out why {container} fails its probe ({logs}), or correct the probe."},
	{reasons: []pod.Reason{slowStart}, say: "If it should have started by now, see what {container} says: {logs}; or correct its probe."},
	{reasons: []pod.Reason{pod.ReadinessGatesNotReady}, re: regexp.MustCompile(`readiness gate "([^"]+)"`),
		say: "Have it set by whoever is in charge of it, or by hand: {condition} $1=True."},
	{reasons: []pod.Reason{resettingAgain}, say: "See why {container} asked for it: {previous}."},
	{reasons: []pod.Reason{resizeRefused}, say: "Ask for less: {resize} --help."},
	{reasons: []pod.Reason{resizePending}, say: "End or shrink other pods (\"berth get pods -A\"), or ask for less: {resize} --help."},
	{reasons: []pod.Reason{resizeNotDone}, re: regexp.MustCompile(`(?i)memory`), say: "Let the pod use less memory than the new limit first, or ask for a higher one: {resize} --help."},
	{reasons: []pod.Reason{resizeNotDone}, say: "Ask for other resources: {resize} --help."},
}
