package plan

import (
	"regexp"

	"github.com/berthd/berth/agent/pod"
)

// foreignAdvice is about what containerd, runc, crun and CRI-O say in words of
// their own, where Berth's runtime says the same in others. It comes first: each
// pattern is of one sentence of theirs.
var foreignAdvice = []rule{
	{ops: starting, re: regexp.MustCompile(`exec: "([^"]+)": (?:executable file not found in \$PATH|stat \S+ no such file or directory)`),
		say: "Correct command (or args) of {container}: $1 must be a program in the image, by its path or in its $$PATH."},
	{ops: starting, re: regexp.MustCompile("executable file `([^`]+)` not found in \\$PATH"),
		say: "Correct command (or args) of {container}: $1 must be a program in the image, by its path or in its $$PATH."},
	{ops: starting, re: regexp.MustCompile(`exec: "([^"]+)": (?:permission denied|is a directory)|open executable: Permission denied`),
		say: "Name an executable file as the command of {container}: not a directory, and with the x permission for the user that it runs as."},
	{ops: starting, re: regexp.MustCompile(`error during container init: (?:mkdir|chdir to cwd|mkdirall) .*(?:not a directory|permission denied)|chdir ` + "`[^`]*`" + `: (?:Not a directory|Permission denied|No such file)`),
		say: "Correct workingDir of {container}: it must be a directory that the container's user may enter."},
	{ops: starting, re: regexp.MustCompile(`error mounting "[^"]*" to rootfs at "([^"]+)": .*(?:not a directory|is a directory)`),
		say: "Correct the mountPath $1: a directory can be mounted on a directory only, and a file of a volume, by subPath, on a file."},
	{ops: starting, re: regexp.MustCompile(`no users found|no groups found|unable to find (?:user|group) `),
		say: "Set runAsUser (or runAsGroup) to a number, or add the user to the image: it has none of the name that it is to run as."},
	{ops: starting, re: regexp.MustCompile(`cannot load seccomp profile "([^"]+)": open .*no such file`),
		say: "Put the profile there, or correct localhostProfile: $1 is the file that is looked for."},
	{ops: boxing, re: regexp.MustCompile(`no runtime for "([^"]+)" is configured`),
		say: "Configure the runtime $1 in the container runtime (containerd: runtimes of its CRI plugin; CRI-O: crio.runtime.runtimes), or correct the handler of the pod's RuntimeClass."},
	{ops: boxing, re: regexp.MustCompile(`cni plugin not initialized|cni config uninitialized|No CNI configuration file`),
		say: "Correct the network configuration in the container runtime's directory (/etc/cni/net.d), or put one there: the runtime's log says what is wrong with it." + corrected},
	{ops: boxing, re: regexp.MustCompile(`failed to find plugin "([^"]+)" in path \[([^\]]*)\]`),
		say: "Install the CNI plugin $1 in one of $2 (Debian: apt-get install containernetworking-plugins)." + corrected},
	{ops: pulls, re: regexp.MustCompile(`unexpected media type text/html`),
		say: "Find out what answers in the place of the registry {registry}: a login page, a proxy, or a web server."},
	{ops: pulls, re: regexp.MustCompile(`invalid desc \S+: invalid character|failed to decode .*invalid character`),
		say: "Build the image and push it anew: what the registry {registry} has under {image} is no image."},
	{ops: pulls, re: regexp.MustCompile(`timeout awaiting response headers|TLS handshake timeout`),
		say: "Check that this machine reaches the registry {registry}: its network, firewall and proxy."},
	// A runtime in another process.
	{ops: []pod.Op{pod.OpObserve}, re: regexp.MustCompile(`(?:dial unix|dialing) (/\S+?):`),
		say: "Start the container runtime, or look into its log: nobody answers on $1, and without it nothing can be said or done about pods."},
}
