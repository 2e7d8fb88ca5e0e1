package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/failpoint"
)

const (
	forward4 = "/proc/sys/net/ipv4/ip_forward"
	forward6 = "/proc/sys/net/ipv6/conf/all/forwarding"
	// ruleTimeout bounds one call of iptables, which may wait for another's lock.
	ruleTimeout = 20 * time.Second
)

func hasIPv6() bool {
	body, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(body)) == "0"
}

// readSysctls returns the host's values of what prepareHost changes.
func readSysctls() map[string]string {
	values := map[string]string{}
	paths := []string{forward4, forward6}
	more, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	for _, path := range append(paths, more...) {
		if body, err := os.ReadFile(path); err == nil {
			values[path] = strings.TrimSpace(string(body))
		}
	}
	return values
}

// prepareHost lets the host forward packets and sets the rules of the network. Idempotent.
func (o *ownNetwork) prepareHost(ctx context.Context, c *chosen) error {
	if err := makeBridge(o.dir, c.segment); err != nil {
		return err
	}
	for _, s := range c.segments() {
		for _, subnet := range s.Subnets {
			if err := forward(subnet); err != nil {
				return fmt.Errorf("let the host forward packets: %w", err)
			}
			if err := setRules(ctx, toolFor(subnet), s.Bridge, subnet); err != nil {
				return err
			}
		}
	}
	return nil
}

// forward lets the host forward packets of a range's family.
func forward(subnet string) error {
	if toolFor(subnet) == "ip6tables" {
		keepAdvertisements()
		return setSysctl(forward6, "1")
	}
	return setSysctl(forward4, "1")
}

// keepAdvertisements lets interfaces that learn their routes from router
// advertisements go on doing so: the kernel stops that on a forwarding host
// unless accept_ra is 2.
func keepAdvertisements() {
	paths, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	for _, path := range paths {
		if body, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(body)) == "1" {
			_ = setSysctl(path, "2") // the interface may be gone: nothing to keep then
		}
	}
}

func setSysctl(path, value string) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(body)) == value {
		return nil
	}
	failpoint.Hit("cni/sysctl")
	return os.WriteFile(path, []byte(value), 0o644)
}

// chain names the rules of one bridge.
func chain(bridge string) string { return "BERTH-" + strings.ToUpper(bridge) }

// jumps are the rules in the kernel's own chains that lead to ours.
func jumps(bridge, subnet string) [][]string {
	return [][]string{
		{"-t", "nat", "POSTROUTING", "-s", subnet, "-j", chain(bridge)},
		{"-t", "filter", "FORWARD", "-j", chain(bridge)},
	}
}

// setRules masquerades what leaves the subnet for elsewhere, and accepts what
// pods send and what answers them or is meant for their host ports, whatever
// the host's forward policy. Both chains are replaced whole.
func setRules(ctx context.Context, tool, bridge, subnet string) error {
	multicast := "224.0.0.0/4"
	if tool == "ip6tables" {
		multicast = "ff00::/8"
	}
	c := chain(bridge)
	rules := fmt.Sprintf(`*nat
:%[1]s - [0:0]
-A %[1]s -d %[2]s -j RETURN
-A %[1]s ! -d %[3]s -j MASQUERADE
COMMIT
*filter
:%[1]s - [0:0]
-A %[1]s -i %[4]s -j ACCEPT
-A %[1]s -o %[4]s -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT
COMMIT
`, c, subnet, multicast, bridge)
	failpoint.Hit("cni/rules")
	if err := iptables(ctx, tool+"-restore", rules, "-w", "10", "--noflush"); err != nil {
		return err
	}
	for _, j := range jumps(bridge, subnet) {
		if iptables(ctx, tool, "", edit("-C", j)...) == nil {
			continue
		}
		failpoint.Hit("cni/rules-jump")
		if err := iptables(ctx, tool, "", edit("-I", j)...); err != nil {
			return err
		}
	}
	return nil
}

// edit makes the arguments that check, insert or delete a jump: -t TABLE OP CHAIN RULE.
func edit(op string, jump []string) []string {
	return append([]string{"-w", "10", jump[0], jump[1], op}, jump[2:]...)
}

func iptables(ctx context.Context, program, stdin string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, ruleTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, find(program), args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	failpoint.Hit("cni/iptables")
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is not installed: apt-get install iptables", program)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// find looks where Debian has iptables even if PATH lacks the directory.
func find(program string) string {
	if path, err := exec.LookPath(program); err == nil {
		return path
	}
	return filepath.Join("/usr/sbin", program)
}

// remove takes the default network off the host. Idempotent.
func (o *ownNetwork) remove(ctx context.Context) error {
	c := o.stored()
	if c == nil {
		return nil
	}
	for _, s := range append(c.Retired, c.segment) {
		if err := s.remove(ctx); err != nil {
			return err
		}
	}
	return errors.Join(dropPortChains(ctx), restoreSysctls(c.Sysctls))
}

// whole lists until the list is whole: the kernel says when it changed meanwhile.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 20 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// restoreSysctls puts back what prepareHost changed, unless another bridge of
// Berth's still needs it.
func restoreSysctls(values map[string]string) error {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list the host's interfaces: %w", err)
	}
	for _, l := range links {
		if l.Type() == "bridge" && strings.HasPrefix(l.Attrs().Name, "berth") {
			return nil
		}
	}
	var errs []error
	for path, v := range values {
		if err := setSysctl(path, v); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// prepare brings up the loopback interface of a network namespace, and lets its
// IPv6 addresses be used at once: an address that Berth gave out itself needs
// no duplicate detection, which would delay the pod by a second.
func prepare(netns string) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		errc <- prepareHere(netns)
	}()
	return <-errc
}

func prepareHere(netns string) error {
	fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the network namespace %s: %w", netns, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace %s: %w", netns, err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	failpoint.Hit("cni/loopback")
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up the loopback interface: %w", err)
	}
	for _, which := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/accept_dad", []byte("0"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("switch off duplicate address detection: %w", err)
		}
	}
	return nil
}
