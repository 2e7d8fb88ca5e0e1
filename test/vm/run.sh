#!/bin/sh
# run.sh SCRIPT [FILE...]: boots the machine of build.sh on a fresh disk, with SCRIPT as /vm/script and each FILE (or
# directory) in /vm, runs SCRIPT as root once the machine is up and prints what it says; ends with SCRIPT's verdict:
# the last line "VM-RESULT ok" is success. The line "VM-POWER-CUT" makes run.sh cut the power (kill qemu) and boot the
# same disk again; "VM-REBOOT" announces that the machine reboots by itself.
#   VM_CGROUP=v2|v1|hybrid   how systemd mounts cgroups (default v2)
#   VM_ACCEL                 qemu's accelerator (-accel tcg,thread=multi -cpu max; -accel kvm -cpu host where there is one)
#   VM_SMP, VM_MEM, VM_SIZE  processors (2), memory in MiB (2048), disk (6G)
#   VM_TIME                  seconds until it is given up (3600)
#   VM_APPEND                more for the kernel's command line
#   VM_OUT                   a directory that gets what SCRIPT has left in /vm/out
# The script finds the mode in /proc/cmdline: berth.cgroup=MODE.
set -eu
vm=${BERTH_VM:-$HOME/.cache/berth-vm}
mode=${VM_CGROUP:-v2}
case $mode in
v2) cgroup="systemd.unified_cgroup_hierarchy=1" ;;
v1) cgroup="systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1" ;;
hybrid) cgroup="systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=0" ;;
*) echo "VM_CGROUP=$mode: want v2, v1 or hybrid" >&2; exit 2 ;;
esac
disk=$vm/disk-$mode.img
console=$vm/console-$mode.log
files=$vm/files-$mode
rm -rf "$disk" "$files"
mkdir -p "$files/vm"
cp "$1" "$files/vm/script"
shift
for f in "$@"; do cp -r "$f" "$files/vm/"; done
truncate -s "${VM_SIZE:-6G}" "$disk"
PATH=$PATH:/usr/sbin:/sbin
nice mkfs.ext4 -q -d "$vm/root" "$disk"
# A second, small disk carries the files, so that the first is the same for all.
truncate -s "${VM_FILES:-512M}" "$disk.files"
nice mkfs.ext4 -q -L vm-files -d "$files/vm" "$disk.files"
rm -rf "$files"

# Without high-resolution timers: on a busy host an emulated machine with them ends up serving nothing but its timers.
accel=${VM_ACCEL:--accel tcg,thread=multi -cpu max}
boot() {
	# shellcheck disable=SC2086 # lists of words
	exec nice qemu-system-x86_64 $accel -m "${VM_MEM:-2048}" -smp "${VM_SMP:-2}" -netdev user,id=n,restrict=on -device virtio-net-pci,netdev=n,romfile= -nographic -monitor "unix:$vm/monitor-$mode,server,nowait" -no-reboot \
		-kernel "$vm"/root/boot/vmlinuz-*-cloud-amd64 -initrd "$vm"/root/boot/initrd.img-*-cloud-amd64 \
		-drive "file=$disk,format=raw,if=virtio,cache=none" -drive "file=$disk.files,format=raw,if=virtio,cache=none" \
		-append "console=ttyS0 root=/dev/vda rw $cgroup berth.cgroup=$mode quiet highres=off systemd.show_status=0 ${VM_APPEND:-}" </dev/null >>"$console" 2>&1
}

: >"$console"
end=$(($(date +%s) + ${VM_TIME:-3600}))
shown=0
show() { # what the console has said since last time
	now=$(wc -c <"$console")
	tail -c "+$((shown + 1))" "$console" | head -c $((now - shown)) | tr -d '\r'
	shown=$now
}
out() { # what the script has left, also if it never came to an end
	[ -n "${VM_OUT:-}" ] || return 0
	rm -rf "$VM_OUT"
	mkdir -p "$VM_OUT"
	debugfs -R "rdump /out $VM_OUT" "$disk.files" >/dev/null 2>&1
}
qemu=
trap '[ -z "$qemu" ] || kill -9 "$qemu" 2>/dev/null || true; rm -f "$disk" "$disk.files"' EXIT
trap 'exit 130' INT TERM
cuts=0
reboots=0
boot & qemu=$!
while :; do
	sleep 0.5
	show
	if [ "$(grep -c '^VM-POWER-CUT' "$console")" -gt $cuts ]; then
		cuts=$((cuts + 1))
		kill -9 $qemu
		wait $qemu 2>/dev/null || true
		echo "-- the power was cut; booting again --"
		boot & qemu=$!
	elif ! kill -0 $qemu 2>/dev/null; then
		[ "$(grep -c '^VM-REBOOT' "$console")" -gt $reboots ] || break
		reboots=$((reboots + 1))
		echo "-- the machine has gone down; booting again --"
		boot & qemu=$!
	elif [ "$(date +%s)" -gt $end ]; then
		echo "the machine was given up after ${VM_TIME:-3600} s" >&2
		out
		exit 1
	fi
done
show
wait $qemu 2>/dev/null || true
qemu=
out
tr -d '\r' <"$console" | grep '^VM-RESULT' | tail -n 1 | grep -q '^VM-RESULT ok'
