# node.sh: what check.sh runs inside the test machine (run.sh): Berth installed as `make install` does, started by
# systemd, with all examples as manifests, seen through the command line and the kernel's own files. In /vm:
#   install/      what `make install DESTDIR=` made      examples/    the examples
#   busybox.tar   their image
# The mode of cgroups is in /proc/cmdline. v2 goes through everything, power cut and reboot
# included; v1 and hybrid through a shorter form.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mode=$(sed -n 's/.*berth.cgroup=\([a-z0-9]*\).*/\1/p' /proc/cmdline)
state=/var/vm-state
manifests=/etc/berth/manifests
failed=0 passed=0

say() { printf '\n== %s\n' "$*"; }
good() { passed=$((passed + 1)); echo "ok    $1"; }
bad() {
	failed=$((failed + 1))
	echo "FAIL  $1"
	[ -z "${2:-}" ] || printf '%s\n' "$2" | head -n 60 | cut -c1-400 | sed 's/^/      /'
}
# check TEXT COMMAND...: the command succeeds.
check() {
	text=$1
	shift
	if out=$("$@" 2>&1); then good "$text"; else bad "$text" "$out"; fi
}
# within SECONDS TEXT COMMAND...: the command succeeds in time.
within() {
	seconds=$1 text=$2 begun=$(date +%s)
	shift 2
	while :; do
		if out=$("$@" 2>&1); then
			good "$text ($(($(date +%s) - begun)) s)"
			return 0
		fi
		[ $(($(date +%s) - begun)) -lt "$seconds" ] || break
		sleep 0.5
	done
	bad "$text (not within $seconds s)" "$out"
	return 1
}
is() { [ "$1" = "$2" ] || { echo "got '$1', want '$2'"; return 1; }; }
no() { ! "$@"; }

# --- pods through the command line ---
pods() {
	timeout 30 berth get pods -A -o json && return
	# An agent that does not answer tells its log what it waits for.
	[ $? != 124 ] || kill -QUIT "$(systemctl show -p MainPID --value berth)"
	return 1
}
# pod NAME FILTER: what jq says of the pod.
pod() { pods | jq -r --arg name "$1" ".items[] | select(.metadata.name == \$name) | $2"; }
phase() { is "$(pod "$1" .status.phase)" "$2"; }
ready() { is "$(pod "$1" '.status.conditions[] | select(.type == "Ready") | .status')" True; }
container() { pod "$1" "(.status.containerStatuses + (.status.initContainerStatuses // []))[] | select(.name == \"$2\") | $3"; }
last_reason() { is "$(container "$1" "$2" '[.state.terminated.reason, .lastState.terminated.reason] | map(select(. != null)) | first')" "$3"; }
waiting() { is "$(container "$1" "$2" .state.waiting.reason)" "$3"; }
id() { container "$1" "$2" .containerID | sed 's|.*://||'; }
pid() { cat "/run/berth/containers/$(id "$1" "$2")/bundle/pidfile"; }
logs_say() { berth logs "$1" -c "$2" | grep -q "$3" || { echo "logs of $1/$2 lack: $3"; return 1; }; }
none() { is "$(pods | jq '.items | length')" 0; }
# page URL TEXT
page() { curl -fsS --noproxy '*' --max-time 5 "$1" | grep -q "$2"; }

# Containers that never end by themselves, as "pod container".
steady="web/web hello/web shared-pid/worker shared-pid/watcher host-privileged/tool oom/calm hooks/main sized/sized init-sidecar/main shared-volume/reader"

# lives: of each steady container its ID, process and that process's start time, and restart count.
lives() {
	pods >/tmp/pods.json
	for c in $steady; do
		jq -r --arg p "${c%/*}" --arg c "${c#*/}" '.items[] | select(.metadata.name == $p) | .status.containerStatuses[] | select(.name == $c) | "\(.containerID) \(.restartCount)"' /tmp/pods.json |
			while read -r cid restarts; do
				cid=${cid#*://}
				p=$(cat "/run/berth/containers/$cid/bundle/pidfile")
				echo "$c $cid $p $(cut -d' ' -f22 "/proc/$p/stat" 2>/dev/null || echo dead) restarts=$restarts"
			done
	done
}
same_lives() { # same_lives FILE
	lives >/tmp/lives.now
	[ -s "$1" ] && ! grep -q dead "$1" && diff "$1" /tmp/lives.now
}

# --- cgroups ---
controllers() { # where limits are seen: v2 has one tree
	if [ "$mode" = v2 ]; then echo /sys/fs/cgroup; else echo "/sys/fs/cgroup/$1"; fi
}
# cgroup_of PID [CONTROLLER]: its directory.
cgroup_of() {
	if [ "$mode" = v2 ]; then
		echo "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")"
	else
		echo "/sys/fs/cgroup/$2$(awk -F: -v c="$2" '{ n = split($2, a, ","); for (i = 1; i <= n; i++) if (a[i] == c) print $3 }' "/proc/$1/cgroup")"
	fi
}
# up DIR FILE WANT: DIR or a group above it below the pod's slice has FILE saying WANT (crun puts the process one deeper).
up() {
	d=$1 seen=
	while [ "${d%.slice}" = "$d" ] && [ "$d" != / ]; do
		v=$(cat "$d/$2" 2>/dev/null || true)
		seen="$seen $d/$2=$v"
		[ "$v" != "$3" ] || return 0
		d=$(dirname "$d")
	done
	echo "want $3:$seen"
	return 1
}
slice_of() { # the pod's slice above a directory
	d=$1
	while [ "${d%.slice}" = "$d" ] && [ "$d" != / ]; do d=$(dirname "$d"); done
	echo "$d"
}
limits() { # of the pod "sized": cpu 250m of 500m, memory 48Mi of 96Mi
	p=$(pid sized sized)
	if [ "$mode" = v2 ]; then
		g=$(cgroup_of "$p")
		up "$g" memory.max 100663296 && up "$g" cpu.max "50000 100000" && up "$g" cpu.weight 10 &&
			is "$(cat "$(slice_of "$g")/memory.max")" 100663296 && is "$(cat "$(slice_of "$g")/cpu.max")" "50000 100000" &&
			is "$(cat "$(slice_of "$g")/cpu.weight")" 10
	else
		m=$(cgroup_of "$p" memory) c=$(cgroup_of "$p" cpu)
		up "$m" memory.limit_in_bytes 100663296 && up "$c" cpu.cfs_quota_us 50000 && up "$c" cpu.shares 256 &&
			is "$(cat "$(slice_of "$m")/memory.limit_in_bytes")" 100663296 && is "$(cat "$(slice_of "$c")/cpu.cfs_quota_us")" 50000 &&
			is "$(cat "$(slice_of "$c")/cpu.shares")" 256
	fi
}
in_kubepods() { # each steady container's process is in the pods' slice, in every hierarchy that counts
	for c in $steady; do
		p=$(pid "${c%/*}" "${c#*/}")
		grep -qE '(^0::|:memory:|name=systemd:)/kubepods\.slice/' "/proc/$p/cgroup" && ! grep -q 'berth\.service' "/proc/$p/cgroup" ||
			{ echo "$c:"; cat "/proc/$p/cgroup"; return 1; }
	done
}
conmons() { ps -eo pid,args | awk '$2 ~ /conmon$/ { print $1 }'; }
conmons_apart() {
	[ -n "$(conmons)" ] || { echo "no conmon runs"; return 1; }
	for p in $(conmons); do
		! grep -qE 'kubepods' "/proc/$p/cgroup" && ! grep -E '(^0::|:memory:|:pids:|:cpu[:,]|name=systemd:)' "/proc/$p/cgroup" | grep berth.service ||
			{ ps -o pid,args "$p" | cut -c1-120; cat "/proc/$p/cgroup"; return 1; }
	done
}
unit_alone() { # nothing of a pod is counted as the agent's unit
	main=$(systemctl show -p MainPID --value berth)
	others=$(systemctl show -p ControlGroup --value berth | while read -r g; do
		cat "/sys/fs/cgroup$g/cgroup.procs" "/sys/fs/cgroup/systemd$g/cgroup.procs" "/sys/fs/cgroup/unified$g/cgroup.procs" 2>/dev/null
	done | sort -u | grep -vx "$main")
	for p in $others; do # crun and the like come and go
		sleep 1
		[ ! -e "/proc/$p" ] || { ps -o pid,args "$p"; return 1; }
	done
}

# --- what is left ---
left() {
	{
		find /sys/fs/cgroup -type d \( -name '*kubepods*' -o -name 'berth-*' \) | sed 's/^/cgroup /'
		awk '$5 ~ /berth/ { print "mount", $5 }' /proc/self/mountinfo
		ip -o link | awk -F': ' '$2 ~ /berth|veth|cni/ { print "link", $2 }'
		{ iptables-save; ip6tables-save; } 2>/dev/null | grep -iE 'berth|cni' | sed 's/^/rule /'
		nft list tables 2>/dev/null | grep -iE 'berth|cni' | sed 's/^/table /'
		ps -eo pid,args | awk '$2 ~ /(conmon|crun|runc|berth)$/ && $3 != "get" { print "process", $0 }'
		systemctl list-units --all --plain --no-legend '*kubepods*' 'berth-*' | sed 's/^/unit /'
		ls -d /run/berth /var/lib/berth 2>/dev/null | sed 's/^/directory /'
	} | grep .
}
nothing_left() { ! left; }
addresses() { find /var/lib/berth/cni /run/berth/cni -type f -regex '.*/[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+' | wc -l; }
with_address() { pods | jq '[.items[] | select(.spec.hostNetwork != true and .status.podIP != null and .status.phase == "Running")] | length'; }
# A pod that has ended may keep its address no longer than its sandbox.
no_address_leaked() { is "$(addresses)" "$(with_address)"; }

# Each writable layer is of a container that is there.
no_rootfs_leaked() {
	for d in /var/lib/berth/images/rw/*; do
		[ ! -e "$d" ] || [ -e "/run/berth/containers/$(basename "$d")" ] || { echo "$d"; return 1; }
	done
}

# --- steps ---
network() {
	ip link set lo up
	for l in /sys/class/net/e*; do
		ip link set "$(basename "$l")" up
		ip addr add 10.0.2.15/24 dev "$(basename "$l")"
		ip route add default via 10.0.2.2
	done
}
install_berth() {
	tar -C /vm/install -c . | tar -x -C / --keep-directory-symlink
	systemctl daemon-reload
}
oci() { # oci NAME: the agent's OCI runtime
	sed -i "s/^  ociRuntime:.*/  ociRuntime: $1/" /etc/berth/config.yaml
	berth config check
}
answers() { berth get pods; }
place() {
	cp /vm/examples/*.yaml /vm/examples/hello/hello.yaml "$manifests/"
	cat >"$manifests/sized.yaml" <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: sized}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: sized
    image: docker.io/library/busybox:1.36
    command: [sleep, "100000"]
    resources:
      requests: {cpu: 250m, memory: 48Mi}
      limits: {cpu: 500m, memory: 96Mi}
Y
}
examples() {
	say "examples with $1 on cgroup $mode"
	place
	for p in web init-sidecar shared-volume host-privileged shared-pid hooks hello sized; do within 180 "$p is Ready" ready $p; done
	within 60 "completes has Succeeded" phase completes Succeeded
	within 60 "hello-once has Succeeded" phase hello-once Succeeded
	check "completes: Completed" last_reason completes work Completed
	within 120 "crash-loop waits in CrashLoopBackOff" waiting crash-loop broken CrashLoopBackOff
	within 120 "oom's container is OOMKilled" last_reason oom greedy OOMKilled
	check "its neighbour was not restarted" is "$(container oom calm .restartCount)" 0
	check "why crash-loop tells the exit code" sh -c 'berth why crash-loop | grep -q 3'
	check "exec" is "$(berth exec web -- id -u)" 1000
	check "exec tells the exit code" sh -c 'berth exec sized -- sh -c "exit 7"; [ $? = 7 ]'
	within 20 "logs" logs_say init-sidecar main prepared
	within 20 "logs of a container that sees its neighbour's process" logs_say shared-pid watcher "I see the worker"
	check "the page by the pod's address" page "http://$(pod hello .status.podIP):8080/" "Hello from a pod"
	check "the page by the host port, from the host" page http://127.0.0.1:8088/ "Hello from a pod"
	check "the page by the host port, at the node's address" page http://10.0.2.15:8088/ "Hello from a pod"
	check "limits are in the files of the pod's slice and of the container" limits
	check "containers are in kubepods.slice, none below berth.service" in_kubepods
	within 10 "conmons are in no pod's cgroup and not in the agent's" conmons_apart
	check "only the agent is counted as berth.service" unit_alone
	[ "$mode" != v2 ] || check "an OOM kill takes the container as a whole (memory.oom.group)" up "$(cgroup_of "$(pid sized sized)")" memory.oom.group 1
	check "the agent is spared by the OOM killer, containers are not" sh -c "[ \$(cat /proc/$(systemctl show -p MainPID --value berth)/oom_score_adj) = -999 ] && [ \$(cat /proc/$(pid web web)/oom_score_adj) -gt 0 ]"
	systemctl daemon-reload
	check "limits outlive systemctl daemon-reload" limits
	within 20 "as many addresses as pods that have one" no_address_leaked
}
take_away() {
	rm -f "$manifests"/*.yaml
	within 90 "without manifests all pods are gone" none
	within 30 "no container, sandbox or address is left" sh -c '[ -z "$(ls /run/berth/containers /run/berth/sandboxes | grep -v :)" ]'
	check "no address is left" is "$(addresses)" 0
	check "no conmon is left" is "$(conmons)" ""
}
outlives() { # outlives TEXT COMMAND...: every pod keeps its processes
	when=$1
	shift
	lives >/tmp/lives.before
	"$@"
	within 60 "$when: the agent answers" answers
	within 30 "$when: pods keep their processes and restart counts" same_lives /tmp/lives.before
}
kill_agent() {
	old=$(systemctl show -p MainPID --value berth)
	kill -9 "$old"
	while [ "$(systemctl show -p MainPID --value berth)" = "$old" ] || ! systemctl -q is-active berth; do sleep 0.2; done
}
stop_start() {
	systemctl stop berth
	check "systemctl stop: the pods' processes stay" sh -c 'while read -r _ _ p s _; do [ "$(cut -d" " -f22 /proc/$p/stat)" = "$s" ] || exit 1; done </tmp/lives.before'
	check "systemctl stop: the page is still served" page http://127.0.0.1:8088/ "Hello from a pod"
	systemctl start berth
}
hang() { # a stopped agent does not feed the watchdog
	mkdir -p /run/systemd/system/berth.service.d
	printf '[Service]\nWatchdogSec=9s\nTimeoutAbortSec=2s\n' >/run/systemd/system/berth.service.d/vm.conf
	systemctl daemon-reload
	systemctl restart berth
	old=$(systemctl show -p MainPID --value berth)
	sleep 15
	check "an agent that answers is left alone by the watchdog" is "$(systemctl show -p MainPID --value berth)" "$old"
	kill -STOP "$old"
	i=0
	while [ "$(systemctl show -p MainPID --value berth)" = "$old" ] && [ $i -lt 100 ]; do i=$((i + 1)); sleep 0.5; done
	check "one that hangs is restarted by it" no is "$(systemctl show -p MainPID --value berth)" "$old"
	rm -r /run/systemd/system/berth.service.d
	systemctl daemon-reload
	systemctl restart berth
}
start() {
	say "install and start on cgroup $mode: $(uname -r), systemd $(systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p'), $(crun --version | head -n 1), $(runc --version | head -n 1)"
	mount | grep 'type cgroup' | awk '{ print $3, $5 }' | sed 's/^/      /'
	network
	install_berth
	berth version 2>/dev/null | sed -n 's/^Client: /      /p'
	oci "$1"
	systemctl -q enable berth
	check "systemctl start berth (Type=notify)" systemctl start berth
	check "it is active" systemctl -q is-active berth
	check "it has a watchdog" no is "$(systemctl show -p WatchdogUSec --value berth)" 0
	within 30 "the agent answers" answers
	check "berth check finds nothing that stops it" berth check
	check "images import" berth images import /vm/busybox.tar
}
purge() {
	say "purge"
	systemctl stop berth
	check "berth purge" berth purge --yes
	within 20 "nothing is left: mounts, cgroups, units, links, rules, processes, directories" nothing_left
	check "no unit has failed" is "$(systemctl --failed --plain --no-legend)" ""
}
verdict() {
	if [ $failed != 0 ]; then
		say "the agent's log, warnings and errors"
		journalctl -u berth --no-pager -o cat | grep -E 'level=(WARN|ERROR)' | cut -c1-500 | tail -n 40
		journalctl -u berth --no-pager -o cat | grep -A 40 -E '^(panic|SIGQUIT)' | cut -c1-200 | head -n 120
	fi
	say "$mode: $passed passed, $failed failed"
	[ $failed = 0 ] && echo "VM-RESULT ok" || echo "VM-RESULT failed"
	exit 0
}
counts() { # restart counts of what restarts, as far as they must outlive a power cut
	pods | jq -r '.items[] | .metadata.name as $p | .status.containerStatuses[]? | "\($p)/\(.name) \(.restartCount)"' | sort
}

after_cut() {
	say "after the power cut"
	passed=$(cat $state/passed) failed=$(cat $state/failed)
	network
	check "berth was started by systemd" systemctl -q is-active berth
	within 60 "the agent answers" answers
	for p in web init-sidecar shared-volume host-privileged shared-pid hooks hello sized told late; do within 180 "$p is Ready again" ready $p; done
	check "completes is still Succeeded and did not run again" phase completes Succeeded
	counts >/tmp/counts
	echo "      restart counts before and after the cut:"
	join -a 1 -a 2 -e - -o 0,1.2,2.2 $state/counts /tmp/counts | sed 's/^/      /'
	check "no restart count went back" sh -c "join $state/counts /tmp/counts | awk '\$3 < \$2 { print; bad = 1 } END { exit bad }'"
	within 30 "no address leaked" no_address_leaked
	check "limits" limits
	check "the page by the host port" page http://127.0.0.1:8088/ "Hello from a pod"
	check "nothing of an earlier boot is left among the root filesystems" no_rootfs_leaked
	say "reboot with all pods running"
	echo $passed >$state/passed
	echo $failed >$state/failed
	date +%s >$state/reboot
	echo "VM-REBOOT"
	systemctl --no-block reboot
	sleep 1000
}

after_reboot() {
	say "after the reboot"
	passed=$(cat $state/passed) failed=$(cat $state/failed)
	network
	down=$(journalctl -b -1 -n 1 -o short-unix --no-pager | sed 's/\..*//')
	took=$((down - $(cat $state/reboot)))
	check "the machine went down in $took s: no pod held it up for longer than its grace period" [ $took -lt 60 ]
	within 60 "the agent answers" answers
	for p in web init-sidecar shared-volume host-privileged shared-pid hooks hello sized told late; do within 180 "$p is Ready again" ready $p; done
	within 30 "no address leaked" no_address_leaked
	check "nothing of an earlier boot is left among the root filesystems" no_rootfs_leaked
	check "berth stop" berth stop told
	take_away
	place
	within 120 "pods start again after all" ready web
	purge
	verdict
}

full() {
	start crun
	examples crun
	say "the agent ends, the pods do not"
	outlives "systemctl restart" systemctl restart berth
	outlives "kill -9" kill_agent
	outlives "stop and start" stop_start
	outlives "watchdog" hang
	take_away
	oci runc
	systemctl restart berth
	within 60 "the agent answers" answers
	examples runc
	outlives "systemctl restart (runc)" systemctl restart berth
	oci crun
	outlives "changing the runtime while pods run" systemctl restart berth
	say "power cut"
	mkdir -p $state
	sed 's/name: sized}/name: told}/' "$manifests/sized.yaml" >/tmp/told.yaml
	counts >$state/counts
	sync # what was true a while ago; what follows is as the kernel has written it
	check "berth run" berth run -f /tmp/told.yaml --timeout 60s
	sed 's/name: sized}/name: late}/' "$manifests/sized.yaml" >"$manifests/late.yaml"
	within 60 "a pod that has just started" ready late
	sync "$manifests/late.yaml" "$manifests"
	echo $passed >$state/passed
	echo $failed >$state/failed
	sync $state/passed $state/failed $state
	echo "VM-POWER-CUT"
	sleep 1000
}
short() {
	start crun
	examples crun
	outlives "systemctl restart" systemctl restart berth
	outlives "kill -9" kill_agent
	outlives "stop and start" stop_start
	take_away
	oci runc
	systemctl restart berth
	within 60 "the agent answers" answers
	examples runc
	purge
	verdict
}

if [ -e $state/reboot ]; then after_reboot; elif [ -e $state/counts ]; then after_cut; elif [ "$mode" = v2 ]; then full; else short; fi
