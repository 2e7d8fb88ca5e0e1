# cases.sh: what fields.sh runs inside the test machine (run.sh): the cases of test/fields, compiled into /vm/fields.test,
# with /vm/berth, on the agents that they start. /vm/settings says which; results and the whole log go to /vm/out.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
. /vm/settings
export BERTH_BIN=/vm/berth BERTH_FIELDS_SERVER=/vm/server BERTH_COMMIT BERTH_PATIENCE BERTH_OCI_RUNTIMES
export BERTH_FIELDS_RESULTS=/vm/out/fields.json HOME=/root
mkdir -p /vm/out
cd /vm || exit 1
# An address for the node, and a name server that is none of the cases'.
nic=$(ls /sys/class/net | grep -v '^lo$' | head -n 1)
ip address add 10.0.2.15/24 dev "$nic" && ip link set "$nic" up && ip route add default via 10.0.2.2
echo 'nameserver 10.0.2.3' >/etc/resolv.conf
modprobe loop
sysctl -q vm.nr_hugepages=16
echo "cgroup $(sed -n 's/.*berth.cgroup=\([a-z0-9]*\).*/\1/p' /proc/cmdline): $(uname -r), $(crun --version | head -n 1), $(runc --version | head -n 1)"
echo "security modules: $(cat /sys/kernel/security/lsm), SELinux $(cat /sys/fs/selinux/enforce 2>/dev/null || echo off), AppArmor $(cat /sys/module/apparmor/parameters/enabled 2>/dev/null || echo off)"
./fields.test -test.v -test.run "$RUN" -test.parallel "$PARALLEL" -test.timeout 3h >out/log 2>&1 &
tests=$!
tail -n +1 -f --pid=$tests out/log | stdbuf -oL grep -E '^=== CONT|\.txt:[0-9]+: |^ *(--- |ok|FAIL|panic)'
wait $tests
verdict=$?
sync
[ $verdict = 0 ] && echo "VM-RESULT ok" || echo "VM-RESULT $verdict"
