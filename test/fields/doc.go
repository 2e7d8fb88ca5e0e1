// Package fields runs the cases of testdata: each sets fields of a pod and sees
// their effect from inside a real container, or sees them refused with a sentence.
//
// A case is a txtar archive. Its first comment line says what it shows; the rest
// of the comment is a script, one command a line; pod.yaml holds the manifests.
// NAME stands for the case's name (and its pod's), DIR for a scratch directory of
// the host, IMAGE for the busybox image, SERVER for
// one that answers probes (see server), REGISTRY for the address of the case's registry, ROOT for the
// agent's root directory. "-> RE" is a regular expression that the
// output must match, in the end:
//
//	covers LEAF ...              what the case shows; pod.yaml must set each leaf
//	need FEATURE                 skip, with the reason, where the host lacks it (see features.go)
//	alone                        the case has an agent of its own
//	not containerd REASON        it cannot hold over that runtime (see test/node, NotOver)
//	[containerd] STEP            a step for that runtime alone; [berth] for Berth's own
//	flags FLAG ...               it has, and with these flags
//	config YAML                  and with this line in its configuration
//	image REF {json}             import an image: busybox with this OCI image configuration
//	registry [USER PASSWORD]     a registry with REGISTRY/private:1, for that user only
//	push NAME:TAG {json} arch=A  into it: busybox with this OCI image configuration
//	fault KIND                   which fails from now on (see registry.go)
//	tls                          whose certificate nobody knows
//	tmpfs PATH SIZE              a small file system, until the test is over
//	readonly PATH                which cannot be written any more
//	hang PATH                    a file system that answers nothing
//	killmonitor C                kill the monitor of a container
//	host COMMAND [-> RE]         run a shell command on the host
//	place                        put pod.yaml into the manifest directory
//	refused -> RE                berth run -f pod.yaml fails, and says so
//	ready | phase PHASE          wait for it
//	waiting C REASON [-> RE]     a container waits, for this reason and with such a message
//	exec C COMMAND [-> RE]       run a shell command in a container
//	logs C [-> RE]               its log
//	status JSONPATH -> RE        of the pod, as kubectl's -o jsonpath
//	oci C JSONPATH -> RE         of the container's OCI specification
//	cgroup C V1FILE|V2FILE -> RE a file of the container's cgroup; C is "." for the pod's
//	events [-> RE], why [-> RE]  what the command line says of the pod
//	berth ARG ... [-> RE]        any other command
//	event TYPE REASON [C] -> RE  one of its events
//	condition TYPE STATUS [REASON] -> RE  one of its conditions, and its message
//	terminated C REASON [CODE] -> RE  how a container has ended, now or the time before
//	cri stop-sandbox | cri stop C | cri remove C  done at the CRI socket, behind the agent's back
//	finally COMMAND              run it on the host when the case is over, even if it fails
//	kill9                        kill the agent and start it again
//	unplace | gone               take the manifest away; wait until the pod is gone
//	remove                       take the manifest away and wait until the pod is gone
package fields
