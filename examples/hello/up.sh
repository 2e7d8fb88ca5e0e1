#!/bin/sh
# up.sh: starts the agent (if it does not run), gets the example image, runs examples/hello and shows what is there.
# Called by `make run` from the top of the clone; leaves the agent running.
set -eu
dir=$(dirname "$0")
berth=$(pwd)/bin/berth
image=docker.io/library/busybox:1.36
log=/var/log/berth.log
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }

if ! "$berth" get pods >/dev/null 2>&1; then
	say "Starting the agent (log: $log)"
	mkdir -p /etc/berth/manifests
	setsid "$berth" agent --manifest-dir /etc/berth/manifests </dev/null >>"$log" 2>&1 &
	i=0
	until "$berth" get pods >/dev/null 2>&1; do
		i=$((i + 1))
		if [ $i -gt 150 ]; then
			echo "the agent did not come up within 30 s; the end of $log:" >&2
			tail -n 20 "$log" >&2
			exit 1
		fi
		sleep 0.2
	done
fi

if ! "$berth" get images -o name 2>/dev/null | grep -q "$image"; then
	say "Getting the image $image"
	if ! timeout 60 "$berth" images pull "$image" 2>/tmp/berth-pull.$$; then
		echo "no registry reachable ($(tail -n 1 /tmp/berth-pull.$$)); building it from busybox-static instead"
		go run ./test/image/cmd/mkimage -o /tmp/berth-hello.$$.tar "$image"
		"$berth" images import /tmp/berth-hello.$$.tar
	fi
	rm -f /tmp/berth-pull.$$ /tmp/berth-hello.$$.tar
fi

say "berth run -f examples/hello/hello.yaml"
"$berth" run -f "$dir/hello.yaml" --timeout 60s

say "berth get pods -o wide"
"$berth" get pods -o wide

ip=$("$berth" get pods hello -o json | sed -n 's/.*"podIP": *"\([^"]*\)".*/\1/p' | head -n 1)
[ -n "$ip" ] || { echo "the pod hello has no IP: berth why hello says" >&2; "$berth" why hello >&2; exit 1; }
say "The page, through the pod network (http://$ip:8080)"
curl -fsS --noproxy '*' --max-time 5 "http://$ip:8080/"
say "The page, through the host port (http://127.0.0.1:8088)"
curl -fsS --noproxy '*' --max-time 5 http://127.0.0.1:8088/

say "berth logs hello"
"$berth" logs hello -c web --tail 5

say "The agent is still running. Try: bin/berth describe pod hello, bin/berth exec -it hello -- sh, bin/berth why hello; make stop ends all."
