#!/bin/sh
# check.sh [v2] [v1] [hybrid]: installs bin/berth into a machine with systemd and checks it there (node.sh), once for
# each way to mount cgroups. Called by `make vm` from the top of the clone.
set -eu
here=$(dirname "$0")
vm=${BERTH_VM:-$HOME/.cache/berth-vm}
image=docker.io/library/busybox:1.36
[ $# -gt 0 ] || set -- v2 v1 hybrid
sh "$here/build.sh"
rm -rf "$vm/files"
mkdir -p "$vm/files"
make -s install DESTDIR="$vm/files/install" PREFIX=/usr/local >/dev/null
go run ./test/image/cmd/mkimage -o "$vm/files/busybox.tar" "$image"
cp -r examples "$vm/files/"
failed=
for mode in "$@"; do
	VM_CGROUP=$mode sh "$here/run.sh" "$here/node.sh" "$vm/files/install" "$vm/files/busybox.tar" "$vm/files/examples" || failed="$failed $mode"
done
[ -z "$failed" ] || { echo "failed on cgroup$failed" >&2; exit 1; }
