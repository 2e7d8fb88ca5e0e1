#!/bin/sh
# down.sh: ends all pods gracefully, then the agent that up.sh started. Does nothing when there is none.
set -eu
berth=$(pwd)/bin/berth
pidfile=/run/berth/agent.pid
if [ -x "$berth" ] && "$berth" get pods >/dev/null 2>&1; then
	"$berth" stop --all --grace-period 5 || true
fi
if [ -f $pidfile ]; then
	pid=$(cat $pidfile)
	if grep -q berth "/proc/$pid/cmdline" 2>/dev/null; then
		kill "$pid"
		i=0
		while kill -0 "$pid" 2>/dev/null && [ $i -lt 100 ]; do i=$((i + 1)); sleep 0.1; done
	fi
	rm -f $pidfile
fi
echo "stopped"
