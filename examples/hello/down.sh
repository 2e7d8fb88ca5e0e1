#!/bin/sh
# down.sh: ends all pods gracefully, then the agent. Does nothing when there is none.
set -eu
berth=$(pwd)/bin/berth
if [ -x "$berth" ] && "$berth" get pods >/dev/null 2>&1; then
	"$berth" stop --all --grace-period 5
	pid=$("$berth" version -o json | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
	kill "$pid"
	i=0
	while kill -0 "$pid" 2>/dev/null; do
		i=$((i + 1))
		if [ $i -gt 200 ]; then
			echo "the agent (process $pid) did not end within 20 s; the end of /var/log/berth.log:" >&2
			tail -n 20 /var/log/berth.log >&2
			exit 1
		fi
		sleep 0.1
	done
fi
echo "stopped"
