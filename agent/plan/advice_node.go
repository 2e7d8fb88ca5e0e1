package plan

import (
	"regexp"

	"github.com/berthd/berth/agent/pod"
)

var (
	mounting  = []pod.Op{pod.OpMountVolumes}
	boxing    = []pod.Op{pod.OpCreateSandbox}
	removing  = []pod.Op{pod.OpStopSandbox, pod.OpRemoveSandbox, pod.OpUnmountVolumes, pod.OpCleanup, pod.OpRemoveContainer}
	goesOn    = " The pod goes on by itself when it is there."
	corrected = " The pod goes on by itself when that is mended."
)

// missingObject is about ConfigMaps and Secrets, wherever a pod uses them.
func missingObject(ops ...pod.Op) []rule {
	return []rule{
		{ops: ops, re: regexp.MustCompile(`(?i)\bsecret "([^"]+)" not found`),
			say: "Create the Secret $1 in the pod's namespace, in a manifest of this node." + goesOn},
		{ops: ops, re: regexp.MustCompile(`(?i)\bconfigmap "([^"]+)" not found`),
			say: "Create the ConfigMap $1 in the pod's namespace, in a manifest of this node." + goesOn},
		{ops: ops, re: regexp.MustCompile(`(?i)couldn't find key (\S+) in (ConfigMap|Secret) (\S+)`),
			say: "Add the key $1 to the $2 $3, or correct the name of the key in the pod." + goesOn},
		{ops: ops, re: regexp.MustCompile(`references non-existent (?:config|secret) key: (\S+)(?: \(in (configmap|secret) "([^"]+)"\))?`),
			say: "Add the key $1 to the $2 $3, or correct the items of the volume." + goesOn},
	}
}

// volumeAdvice is about volumes that cannot be set up.
var volumeAdvice = append(missingObject(pod.OpMountVolumes), []rule{
	{ops: mounting, reasons: []pod.Reason{pod.FailedCreatePodContainer},
		say: "Look at the message: the agent needs to write to the cgroup hierarchy (\"berth check\" tells what the host lacks)."},
	{ops: mounting, re: regexp.MustCompile(`hostPath type check failed: (\S+) is not a directory`),
		say: "Create the directory $1 on the host, or correct path or type of the hostPath (type DirectoryOrCreate would make it)." + goesOn},
	{ops: mounting, re: regexp.MustCompile(`hostPath type check failed: (\S+) is not a file`),
		say: "Create the file $1 on the host, or correct path or type of the hostPath (type FileOrCreate would make it)." + goesOn},
	{ops: mounting, re: regexp.MustCompile(`hostPath type check failed: (\S+) is not a (.+)`),
		say: "Make $1 a $2 on the host, or correct path or type of the hostPath." + goesOn},
	{ops: mounting, re: regexp.MustCompile(`(?i)no space left|disk quota exceeded`), say: "Free space on the filesystem of the agent's root directory (df)."},
	{ops: mounting, re: regexp.MustCompile(`(?i)read-only file system`),
		say: "Make the filesystem of the agent's root directory writable again (dmesg tells why the kernel has made it read-only)."},
	{ops: mounting, re: regexp.MustCompile(`(?i)dead network file system|has not answered`),
		say: "Mend the file system that the path lies on: it hangs, as network file systems do when their server is gone (ls the path to see)."},
	{ops: mounting, re: regexp.MustCompile(`(?i)hugetlb|huge ?pages`), say: "Reserve huge pages on the host (vm.nr_hugepages), or remove the volume."},
	{ops: mounting, re: regexp.MustCompile(`(?i)permission denied|operation not permitted`),
		say: "Give root the right to use the path: a file system that maps root to nobody (NFS root_squash), an immutable file, or a security module forbids it."},
	{ops: mounting, kinds: []pod.Kind{pod.Invalid, pod.NotFound}, say: "Correct what the message names: the volume in the pod, or the object or path that it refers to." + corrected},
	{ops: mounting, say: "See {describe} for what happened before."},
}...)

// sandboxAdvice is about the pod's environment, its network above all.
var sandboxAdvice = []rule{
	{re: regexp.MustCompile(`plugin "([^"]+)" is in none of ([^:]+): install it`),
		say: "Install the CNI plugin $1 in one of $2 (Debian: apt-get install containernetworking-plugins)." + corrected},
	{ops: boxing, reasons: []pod.Reason{pod.NetworkNotReady},
		say: "Correct the network configuration that the message names, or remove it from the directory: without any, the agent makes a network of its own." + corrected},
	{ops: boxing, re: regexp.MustCompile(`runtime handler "([^"]+)" is not configured`),
		say: "Give the agent's configuration an entry $1 in runtime.handlers, or correct the handler of the pod's RuntimeClass."},
	{ops: boxing, re: regexp.MustCompile(`(?i)no IP addresses available|no (?:free )?address|range .*(?:full|exhausted)|exhausted`),
		say: "Give the node a larger subnet (network.subnets of the agent's configuration), or end pods: every address of it is taken."},
	{ops: boxing, re: regexp.MustCompile(`(?i)address already in use|port is already allocated`),
		say: "Find who has the host port (ss -tlnp), and free it, or give the pod another."},
	{ops: boxing, re: regexp.MustCompile(`must end first, to make room`), say: "Wait for the pods that the message names, or end them sooner: \"berth stop --grace-period 0\"."},
	{ops: boxing, re: regexp.MustCompile(`all \d+ ranges of user IDs are in use`),
		say: "End pods with hostUsers: false, or give the agent's user more IDs in /etc/subuid and /etc/subgid."},
	{ops: boxing, re: regexp.MustCompile(`(?i)user ?namespace|hostUsers|ID-?mapped`),
		say: "Set hostUsers: true (or leave it out), or give this host what user namespaces need (\"berth check\" names it)."},
	{ops: boxing, re: regexp.MustCompile(`(?i)sysctl (\S+)`), say: "Correct the sysctl $1 and its value in the pod's securityContext: the kernel refuses it."},
	{ops: boxing, re: regexp.MustCompile(`(?i)no space left|disk quota exceeded`), say: "Free space on the filesystem that the message names (df, and df -i for inodes)."},
	{ops: boxing, re: regexp.MustCompile(`(?i)read-only file system`), say: "Make the filesystem that the message names writable again (dmesg tells why the kernel has made it read-only)."},
	{ops: boxing, re: regexp.MustCompile(`(?i)too many open files|resource temporarily unavailable|cannot allocate memory`),
		say: "Raise the limit that the host has run into (\"berth check\" shows them): processes, open files, or memory."},
	{ops: boxing, re: regexp.MustCompile(`(?i)plugin type="([^"]+)"`), say: "Look at what the CNI plugin $1 says, and at its configuration." + corrected},
	{ops: boxing, kinds: []pod.Kind{pod.Invalid}, say: "Correct in the manifest what the message names."},
	{ops: boxing, say: "See \"berth check\" for what the host lacks, and the agent's log."},
	{ops: []pod.Op{pod.OpObserve}, say: "Start the container runtime, or look into its log: without it nothing can be said or done about pods."},
}

// rejectionAdvice is about pods that this node does not take, and those that it ends for others.
var rejectionAdvice = []rule{
	{reasons: []pod.Reason{pod.NodePorts}, re: regexp.MustCompile(`port (\d+)\b.* is held by pod (\S+)`),
		say: "Give the pod another hostPort than $1, or end the pod $2 that has it." + again},
	{reasons: []pod.Reason{pod.NodePorts}, say: "Give the pod another hostPort." + again},
	{reasons: []pod.Reason{"NodeName"}, say: "Remove nodeName from the manifest, or place it on the node that it names." + again},
	{reasons: []pod.Reason{"NodeAffinity"}, say: "Correct nodeSelector and affinity in the manifest, or give this node the label (nodeLabels of the agent's configuration)." + again},
	{reasons: []pod.Reason{"TaintToleration"}, say: "Give the pod a toleration, or take the taint from the agent's configuration." + again},
	{reasons: []pod.Reason{"PodOSNotSupported", "PodOSSelectorNodeLabelDoesNotMatch"}, say: "Set os.name to linux, or run the pod on a node of the operating system that it is for." + again},
	{reasons: []pod.Reason{"SysctlForbidden"}, re: regexp.MustCompile(`forbidden sysctl: "([^"]+)" not allow`),
		say: "Remove the sysctl $1, or allow it with allowedUnsafeSysctls of the agent's configuration." + again},
	{reasons: []pod.Reason{"SysctlForbidden"}, say: "Remove the sysctl, or the host namespace that it would change." + again},
	{reasons: []pod.Reason{"AppArmor"}, say: "Remove the AppArmor profile from the pod, or start the host's kernel with AppArmor." + again},
	{reasons: []pod.Reason{"SupplementalGroupsPolicyNotSupported"}, say: "Set supplementalGroupsPolicy to Merge, or use the embedded container runtime." + again},
	{reasons: []pod.Reason{"PodFeatureUnsupported"}, say: "Remove what needs the feature from the pod." + again},
	{reasons: []pod.Reason{pod.OutOfPods}, say: "End other pods (\"berth get pods -A\"), or raise maxPods of the agent's configuration." + again},
	{re: regexp.MustCompile(`resource: (\S+), which this node does not offer`),
		say: "Remove $1 from the pod's resources: device plugins that would offer it run only in a cluster." + again},
	{re: regexp.MustCompile(`^(?:Pod was rejected: )?Node didn't have enough resource: (hugepages-\S+),`),
		say: "Reserve huge pages of this size on the host (before the agent starts), or lower the pod's limit of $1." + again},
	{re: regexp.MustCompile(`Node didn't have enough resource: (\S+),`),
		say: "Lower the pod's request of $1, end other pods (\"berth get pods -A\"), or lower systemReserved of the agent's configuration." + again},
	{reasons: []pod.Reason{pod.Evicted}, re: regexp.MustCompile(`EmptyDir volume "([^"]+)"`), say: "Raise the sizeLimit of the emptyDir $1, or let the pod write less there." + again},
	{reasons: []pod.Reason{pod.Evicted}, re: regexp.MustCompile(`ephemeral`), say: "Raise the limit of ephemeral-storage of the pod's containers, or let them write less to their own filesystem and logs." + again},
	{reasons: []pod.Reason{pod.Evicted}, say: "Free what the message names." + again},
	{reasons: []pod.Reason{"Preempting"}, say: "Give the pod a higher priority (priorityClassName), or the node more room: a pod of higher priority has taken its place." + again},
	{reasons: []pod.Reason{pod.DeadlineExceeded}, say: "Raise activeDeadlineSeconds, or find out why the pod took so long: {logs}." + again},
}

// again is how a pod that has failed for good is run anew.
const again = " Then change the manifest, or take it away and place it again."

// manifestAdvice is about manifests that cannot be used.
var manifestAdvice = []rule{
	{reasons: []pod.Reason{pod.FailedValidation}, re: regexp.MustCompile(`no manifest gives a (RuntimeClass|PriorityClass) of this name`),
		say: "Add a manifest with the $1, or correct its name in {manifest}."},
	{reasons: []pod.Reason{pod.FailedValidation}, re: regexp.MustCompile(`already gives the`), say: "Remove one of the two, or give it another name: {manifest}."},
	{reasons: []pod.Reason{pod.FailedValidation}, say: "Correct {manifest}."},
}

// hostAdvice is about what is left behind, and about the agent's own records.
var hostAdvice = []rule{
	{ops: removing, re: regexp.MustCompile(`(?i)device or resource busy|still a mount|mounts keep coming back`),
		say: "Find who still uses it (fuser -vm, or the mounts below it in /proc/self/mountinfo)."},
	{ops: removing, re: regexp.MustCompile(`(?i)stuck in the kernel|do not end`), say: "Look at the processes that do not end (ps, state D): they wait for a device or a network file system."},
	{ops: removing, say: "See the message, and the agent's log."},
	{reasons: []pod.Reason{recordUnsaved}, re: regexp.MustCompile(`(?i)no space left|disk quota exceeded`),
		say: "Free space on the filesystem of the agent's root directory (df)."},
	{reasons: []pod.Reason{recordUnsaved}, re: regexp.MustCompile(`(?i)read-only file system`),
		say: "Make the filesystem of the agent's root directory writable again (dmesg tells why the kernel has made it read-only)."},
	{reasons: []pod.Reason{recordUnsaved}, say: "Make the agent's root and state directories writable."},
}

// recordUnsaved is the reason of a pod whose record cannot be saved.
const recordUnsaved pod.Reason = "FailedSync"
