package cni

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/test/failpoint"
)

// The bridge and ptp plugins remove a sandbox's masquerading by the addresses of
// its interface, and the interface first: a DEL that was cut off in between, or
// comes after the network namespace, leaves rules that no later DEL finds:
//
//	-A POSTROUTING -s ADDRESS ... --comment "name: \"NETWORK\" id: \"SANDBOX\"" -j CNI-HASH
//
// or, by nftables, rules of one chain for all, whose comments begin with hashes.
const (
	masqTable = "cni_plugins_masquerade"
	masqChain = "masq_checks"
)

// strayTime is how long DEL waits for programs that outlived the plugin that
// started them: the death of an agent kills its plugins, and not those. They are
// not killed here: a plugin may also have left a daemon that serves other pods.
const strayTime = 2 * time.Second

// hashed is how the plugins make names: length characters, prefix and a hash of text.
func hashed(length int, prefix, text string) string {
	return (prefix + fmt.Sprintf("%x", sha512.Sum512([]byte(text))))[:length]
}

// sweepMasquerade removes what is left of the masquerading of a sandbox whose
// DEL has been answered. Idempotent.
func (n *Network) sweepMasquerade(ctx context.Context, x *attachment) error {
	var errs []error
	for _, tool := range families {
		err := dropMasquerade(ctx, tool, hashed(28, "CNI-", x.Network+x.Request.SandboxID))
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Exited() && ctx.Err() == nil {
			// A host without this family's tables cannot have such rules either.
			n.cfg.Log.Warn("whether rules to masquerade a pod are left is not known", "sandbox", x.Request.SandboxID, "error", err)
			err = nil
		}
		errs = append(errs, err)
	}
	// The plugins ask for nftables where the configuration says so, or nothing else is there.
	if bytes.Contains(x.Conflist, []byte(`"nftables"`)) || !exists(find(families[0])) {
		errs = append(errs, dropMasqueradeNft(ctx, hashed(16, "", x.Network)+"-"+hashed(16, "", interfaceName+":"+x.Request.SandboxID)))
	}
	return errors.Join(errs...)
}

// dropMasquerade removes a chain and what leads to it.
func dropMasquerade(ctx context.Context, tool, chain string) error {
	rules, there, err := leadingTo(ctx, tool, chain)
	if err != nil || !there {
		return err
	}
	if err = dropRules(ctx, tool, rules, []string{chain}); err != nil {
		// All or nothing: somebody may have removed a part of it meanwhile.
		if _, there, e := leadingTo(ctx, tool, chain); e == nil && !there {
			err = nil
		}
	}
	return err
}

// leadingTo lists the rules that jump to a chain of the nat table, and says
// whether it is there.
func leadingTo(ctx context.Context, tool, chain string) (rules []string, there bool, err error) {
	lines, err := natRules(ctx, tool)
	for _, l := range lines {
		there = there || strings.HasPrefix(l, ":"+chain+" ")
		if strings.HasPrefix(l, "-A ") && strings.HasSuffix(l, " -j "+chain) {
			rules = append(rules, l)
		}
	}
	return rules, there, err
}

// dropMasqueradeNft removes the rules whose comments begin with mark. No nft or
// no table: no rules.
func dropMasqueradeNft(ctx context.Context, mark string) error {
	ctx, cancel := context.WithTimeout(ctx, ruleTimeout)
	defer cancel()
	failpoint.Hit("cni/nft-list")
	list := exec.CommandContext(ctx, find("nft"), "-a", "list", "chain", "inet", masqTable, masqChain)
	list.WaitDelay = time.Second
	out, err := list.CombinedOutput()
	if errors.Is(err, os.ErrNotExist) || err != nil && bytes.Contains(out, []byte("No such file")) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the rules of nftables that masquerade pods: %w: %s", err, bytes.TrimSpace(out))
	}
	var errs []error
	for l := range strings.Lines(string(out)) {
		_, number, ok := strings.Cut(l, "# handle ")
		if !ok || !strings.Contains(l, ` comment "`+mark) {
			continue
		}
		failpoint.Hit("cni/nft-drop")
		drop := exec.CommandContext(ctx, find("nft"), "delete", "rule", "inet", masqTable, masqChain, "handle", strings.TrimSpace(number))
		drop.WaitDelay = time.Second
		if out, err := drop.CombinedOutput(); err != nil && !bytes.Contains(out, []byte("No such file")) {
			errs = append(errs, fmt.Errorf("delete a rule of nftables that masqueraded a pod: %w: %s", err, bytes.TrimSpace(out)))
		}
	}
	return errors.Join(errs...)
}

// awaitStrays waits, for at most strayTime, until no program runs any more that
// a plugin was called with for this sandbox: an iptables that a killed plugin
// has started must not add a rule after DEL has looked for it.
func (n *Network) awaitStrays(ctx context.Context, sandbox string) {
	ctx, cancel := context.WithTimeout(ctx, strayTime)
	defer cancel()
	for pids := strays(sandbox); len(pids) > 0; pids = strays(sandbox) {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			n.cfg.Log.Warn("programs that plugins have started for a sandbox go on beside its DEL", "sandbox", sandbox, "pids", pids)
			return
		}
	}
}

// strays are the processes that have a sandbox's ID from the call of a plugin.
// One in another PID namespace is a container's, and may claim what it likes.
func strays(sandbox string) (pids []int) {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil
	}
	dirs, _ := filepath.Glob("/proc/[1-9]*") // the pattern is good
	for _, dir := range dirs {
		body, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || len(body) == 0 { // it is gone, or a kernel thread
			continue
		}
		env := strings.Split(string(body), "\x00")
		if !slices.Contains(env, "CNI_CONTAINERID="+sandbox) {
			continue
		}
		if its, err := os.Readlink(filepath.Join(dir, "ns/pid")); err == nil && its == own {
			pid, _ := strconv.Atoi(filepath.Base(dir)) // a number, by the pattern
			pids = append(pids, pid)
		}
	}
	return pids
}
