package plan

import (
	"regexp"

	"github.com/berthd/berth/agent/pod"
)

var pulls = []pod.Op{pod.OpPullImage}

// imageAdvice is about images that cannot be had.
var imageAdvice = []rule{
	{ops: pulls, reasons: []pod.Reason{pod.ErrImageNeverPull},
		say: "Import the image with \"berth images import\", fetch it with \"berth images pull {image}\", or let imagePullPolicy be IfNotPresent."},
	{ops: pulls, reasons: []pod.Reason{pod.InvalidImageName},
		say: "Correct the image's name in the manifest: it is [registry/]name[:tag] or [registry/]name@sha256:digest, in lower case."},
	{ops: pulls, reasons: []pod.Reason{pod.SignatureValidationFailed},
		say: "Sign the image, or correct the container runtime's signature policy."},
	{ops: pulls, re: regexp.MustCompile(`(?i)image is for (\S+), this machine is (\S+?)[:.,]|no match for platform`),
		say: "Build the image for this machine's platform ($2) too, or name one that is: a tag of several platforms is chosen from by itself."},
	{ops: pulls, re: regexp.MustCompile(`(?i)no space left|disk quota exceeded|DiskFull`),
		say: "Free space on the filesystem of the images (df), for example with \"berth images rm\" of images that nothing uses."},
	{ops: pulls, re: regexp.MustCompile(`(?i)read-only file system`),
		say: "Make the filesystem of the images writable again (dmesg tells why the kernel has made it read-only)."},
	{ops: pulls, re: regexp.MustCompile(`(?i)\b429\b|too many requests|toomanyrequests|rate limit`),
		say: "Wait, or log in with imagePullSecrets for a higher limit, or pull through a mirror: the registry {registry} limits how often it is asked."},
	{ops: pulls, re: regexp.MustCompile(`(?i)x509|certificate|tls:`),
		say: "Put the registry's CA certificate below the certsDir of the agent's configuration ({registry}/hosts.toml), or correct the clock if it is the dates that are wrong."},
	{ops: pulls, re: regexp.MustCompile(`(?i)server gave HTTP response to HTTPS client`),
		say: "Say in the certsDir of the agent's configuration ({registry}/hosts.toml) that the registry speaks plain http, or give it a certificate."},
	{ops: pulls, re: regexp.MustCompile(`(?i)no such host|lookup \S+|server misbehaving|name resolution`),
		say: "Check the spelling of the registry's name {registry} and this machine's DNS (/etc/resolv.conf)."},
	{ops: pulls, re: regexp.MustCompile(`(?i)connection refused`),
		say: "Start the registry {registry}, or correct its address and port: this machine can be reached there, but nothing listens."},
	{ops: pulls, re: regexp.MustCompile(`(?i)no route to host|network is unreachable|i/o timeout|deadline exceeded|connection reset|unexpected EOF|stalled|stopped giving data`),
		say: "Check that this machine reaches the registry {registry}: its network, firewall and proxy."},
	{ops: pulls, re: regexp.MustCompile(`(?i)\b5\d\d (?:Internal|Bad|Service|Gateway)`),
		say: "Look into the log of the registry {registry}: the fault is on its side."},
	{ops: pulls, re: regexp.MustCompile(`(?i)unexpected status from .*: 40[13]|unauthorized|\bdenied\b|authorization failed|forbidden`),
		say: "Check the image's name, and give the pod an imagePullSecrets Secret whose user may pull it from {registry}: registries answer so too where a repository does not exist."},
	{ops: pulls, kinds: []pod.Kind{pod.Denied},
		say: "Give the pod an imagePullSecrets Secret whose user may pull the image from {registry}."},
	{ops: pulls, re: regexp.MustCompile(`(?i)not found|manifest unknown|name unknown`),
		say: "Correct the image's repository and tag in the manifest, or push {image} to the registry."},
	{ops: pulls, re: regexp.MustCompile(`"text/html"`),
		say: "Find out what answers in the place of the registry {registry}: a login page, a proxy, or a web server."},
	{ops: pulls, re: regexp.MustCompile(`(?i)digest|verif|mismatch`),
		say: "Push the image anew, and if that does not help look at what lies between this machine and the registry {registry} (a proxy or mirror): what it sends is not what it promised."},
	{ops: pulls, kinds: []pod.Kind{pod.Invalid}, say: "Build the image and push it anew: what the registry {registry} has under {image} is no image."},
	{ops: pulls, re: regexp.MustCompile(`which is no image|build or push the image again`), say: "Build the image and push it anew: what the registry {registry} has under {image} is no image."},
	{ops: pulls, say: "Try \"berth images pull {image}\" to see it happen."},
	// It was there when the container was to be made, and then it was not.
	{re: regexp.MustCompile(`image "([^"]+)" of (?:container|volume) "[^"]+" is not there any more`),
		say: "Find out who removes images on this node: $1 is fetched again unless its pull policy is Never."},
	{reasons: []pod.Reason{imageVolumeFailed}, re: regexp.MustCompile(`(?i)subPath`), say: "Correct the subPath of the image volume: it names a file or directory in the image."},
	{reasons: []pod.Reason{imageVolumeFailed}, say: "Check the reference of the image volume and what is in that image."},
}

// imageVolumeFailed is the waiting reason of a container whose image volume cannot be mounted.
const imageVolumeFailed pod.Reason = "ImageVolumeMountFailed"
