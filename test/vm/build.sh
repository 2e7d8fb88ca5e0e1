#!/bin/sh
# build.sh: makes the root file system of the test machine, once: Debian bookworm with systemd, the cloud kernel and
# what Berth and its tests run with. It lands in $BERTH_VM (default ~/.cache/berth-vm); remove that directory to build
# anew. A package that has been added to the list since is added to what is there.
# Needs root, and a Debian mirror (BERTH_VM_MIRROR).
set -eu
here=$(dirname "$0")
vm=${BERTH_VM:-$HOME/.cache/berth-vm}
packages=systemd,systemd-sysv,dbus,udev,kmod,iproute2,iptables,crun,runc,conmon,containernetworking-plugins
packages=$packages,ca-certificates,procps,busybox-static,jq,curl,linux-image-cloud-amd64
# For the fields of a pod: a registry, and both of the kernel's security modules that containers are confined with.
added=docker-registry,apparmor,selinux-policy-default,policycoreutils
mkdir -p "$vm"

missing=
for need in qemu-system-x86_64:qemu-system-x86 debootstrap:debootstrap mkfs.ext4:e2fsprogs; do
	PATH=$PATH:/usr/sbin:/sbin command -v "${need%:*}" >/dev/null || missing="$missing ${need#*:}"
done
if [ -n "$missing" ]; then
	echo "installing:$missing"
	apt-get update -qq
	# shellcheck disable=SC2086 # a list of words
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

if [ ! -e "$vm/root.done" ]; then
	echo "building the machine's root file system in $vm/root (log: $vm/build.log)"
	rm -rf "$vm/root"
	nice debootstrap --variant=minbase --include=$packages bookworm "$vm/root" ${BERTH_VM_MIRROR:-} >"$vm/build.log" 2>&1 ||
		{ tail -n 20 "$vm/build.log" >&2; exit 1; }
	rm -rf "$vm/root"/var/cache/apt/archives/*.deb "$vm/root"/var/lib/apt/lists/*
	echo "$packages" >"$vm/root.done"
fi
all=$packages,$added,$(cksum <"$here/container.cil")
if [ "$(cat "$vm/root.done")" != "$all" ]; then
	echo "adding to it: $added (log: $vm/build.log)"
	cp /etc/resolv.conf /etc/hosts "$vm/root/etc/"
	printf '#!/bin/sh\nexit 101\n' >"$vm/root/usr/sbin/policy-rc.d" # nothing is started in a chroot
	chmod 755 "$vm/root/usr/sbin/policy-rc.d"
	# shellcheck disable=SC2046 # a list of words
	chroot "$vm/root" sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive exec nice apt-get install -y -qq --no-install-recommends "$@"' sh $(echo "$added" | tr , ' ') >>"$vm/build.log" 2>&1 ||
		{ tail -n 20 "$vm/build.log" >&2; exit 1; }
	cp "$here/container.cil" "$vm/root/tmp/"
	nice chroot "$vm/root" semodule -n -s default -i /tmp/container.cil >>"$vm/build.log" 2>&1 || { tail -n 20 "$vm/build.log" >&2; exit 1; }
	rm -rf "$vm/root/usr/sbin/policy-rc.d" "$vm/root/tmp/container.cil" "$vm/root"/var/cache/apt/archives/*.deb "$vm/root"/var/lib/apt/lists/*
	echo "$all" >"$vm/root.done"
fi

# What is set up here may change without a new debootstrap.
echo vm >"$vm/root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 vm\n' >"$vm/root/etc/hosts"
printf 'nameserver 192.0.2.53\n' >"$vm/root/etc/resolv.conf"
chroot "$vm/root" passwd -d root >/dev/null
mkdir -p "$vm/root/vm"
printf '/dev/vda / ext4 defaults 0 1\n/dev/vdb /vm ext4 defaults 0 2\n' >"$vm/root/etc/fstab"
# The journal of a machine whose power is cut is worth reading after the next boot.
mkdir -p "$vm/root/var/log/journal"
cat >"$vm/root/etc/systemd/system/vm-script.service" <<'UNIT'
[Unit]
Description=the script that this machine was booted for
After=multi-user.target
[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/sh /vm/script
ExecStopPost=/bin/systemctl --no-block poweroff
TimeoutStartSec=infinity
[Install]
WantedBy=multi-user.target
UNIT
chroot "$vm/root" systemctl -q enable vm-script.service
chroot "$vm/root" systemctl -q mask serial-getty@ttyS0.service docker-registry.service
