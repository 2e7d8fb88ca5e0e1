#!/bin/sh
# fields.sh [v2] [v1] [hybrid]: runs the cases of test/fields in a machine with systemd, once for each way to mount
# cgroups, and records what they show in docs/results/fields-MODE.json.
#   FIELDS         the cases to run, a regular expression; with it, or one of the OCI runtimes, what is recorded of the
#                  other cases stays, and so does the commit that it was seen at
#   VM_SECURITY    apparmor (default) or selinux: the security module of the machine's kernel
#   BERTH_OCI_RUNTIMES, PARALLEL, BERTH_PATIENCE   see test/fields, go test -parallel (4), test/patience (3)
# From the top of the clone.
set -eu
command -v jq >/dev/null || { echo "needs jq" >&2; exit 1; }
here=$(dirname "$0")
vm=${BERTH_VM:-$HOME/.cache/berth-vm}
[ $# -gt 0 ] || set -- v2 v1
sh "$here/build.sh"
files=$vm/files-fields
rm -rf "$files"
mkdir -p "$files"
export CGO_ENABLED=0
strip='-s -w'
go build -trimpath -ldflags "$strip" -o "$files/berth" ./cmd/berth
go build -trimpath -ldflags "$strip" -o "$files/server" ./test/fields/server
go test -trimpath -ldflags "$strip" -c -o "$files/fields.test" ./test/fields
cp -r test/fields/testdata test/fields/faults test/fields/cluster.txt "$files/"
cat >"$files/settings" <<SETTINGS
RUN='TestFields/(crun|runc)/case/${FIELDS:-.}' PARALLEL=${PARALLEL:-4} BERTH_PATIENCE=${BERTH_PATIENCE:-3} BERTH_OCI_RUNTIMES='${BERTH_OCI_RUNTIMES:-}'
BERTH_COMMIT=$(git -c safe.directory='*' rev-parse --short HEAD)
SETTINGS
# record NEW FILE: puts what a run has shown into FILE. That a case could not run here does not undo that it has passed
# with another security module.
record() {
	if [ -z "${FIELDS:-}${BERTH_OCI_RUNTIMES:-}${VM_SECURITY:-}" ] || ! [ -s "$2" ]; then
		cp "$1" "$2"
		return
	fi
	jq -s --indent 1 '.[0] as $old | .[1] | .commit = ([($old.commit | split(", ")[]), .commit] | unique | join(", "))
		| .cases = $old.cases + (.cases | with_entries(select(.value == "pass" or .value == "FAILED" or $old.cases[.key] != "pass")))' "$2" "$1" >"$2.new"
	mv "$2.new" "$2"
}
append=${VM_APPEND:-}
[ "${VM_SECURITY:-apparmor}" != selinux ] || append="$append security=selinux selinux=1 enforcing=0"
failed=
for mode in "$@"; do
	out=$vm/out-$mode
	VM_CGROUP=$mode VM_OUT=$out VM_MEM=${VM_MEM:-3072} VM_TIME=${VM_TIME:-10800} VM_APPEND=$append \
		sh "$here/run.sh" "$here/cases.sh" "$files"/* || failed="$failed $mode"
	[ ! -s "$out/out/fields.json" ] || record "$out/out/fields.json" "docs/results/fields-$mode.json"
done
[ -z "$failed" ] || { echo "cases of test/fields failed on cgroup$failed: see $vm/out-*/out/log" >&2; exit 1; }
