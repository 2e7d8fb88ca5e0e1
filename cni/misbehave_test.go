package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// script writes a plugin of sh into dir.
func script(t *testing.T, dir, name, body string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
}

// answers is what well-behaved plugins begin with.
const answers = `case $CNI_COMMAND in VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}'; exit;; esac
`

const okAnswer = `echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.1.2.3/24","interface":0}]}'`

// one opens a network of one plugin, which is what body makes of it.
func one(t *testing.T, body string, change func(*Config)) (n *Network, bin string) {
	t.Helper()
	bin = t.TempDir()
	if body != "" {
		script(t, bin, "odd", body)
	}
	n = withConf(t, "10.conflist", `{"cniVersion":"1.0.0","name":"NAME","plugins":[{"type":"odd","capabilities":{"portMappings":true,"bandwidth":true,"dns":true,"ipRanges":true,"mac":true}}]}`, func(c *Config) {
		c.BinDirs = []string{bin}
		c.Timeout = 2 * time.Second
		if change != nil {
			change(c)
		}
	})
	return n, bin
}

// TestOddPlugins: whatever a plugin does, its error comes in time, and names the
// network, the plugin, the verb and what to do; the pod can be removed.
func TestOddPlugins(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		code Code
		want []string
	}{
		"hangs":      {"sleep 1000", Timeout, []string{"was killed", "did not answer in time", "daemon"}},
		"crashes":    {"kill -SEGV $$", Internal, []string{"crashed", "segmentation fault", "kernel's log"}},
		"fails":      {"echo half a line >&2; exit 3", Internal, []string{"exit status 3", "half a line"}},
		"silent":     {"exit 3", Internal, []string{"exit status 3", "it said nothing"}},
		"garbage":    {"echo hello", BadAnswer, []string{"not a JSON object", "install it anew"}},
		"list":       {"echo []", BadAnswer, []string{"not a JSON object"}},
		"nothing":    {"exit 0", BadAnswer, []string{"answered nothing"}},
		"two":        {okAnswer + ";" + okAnswer, BadAnswer, []string{"not a JSON object"}},
		"version":    {`echo '{"cniVersion":"7.0.0","ips":[]}'`, BadAnswer, []string{"7.0.0"}},
		"types":      {`echo '{"cniVersion":"1.0.0","ips":"many"}'`, BadAnswer, []string{"ips"}},
		"no address": {`echo '{"cniVersion":"1.0.0"}'`, BadAnswer, []string{"no address"}},
		"interface":  {`echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/8","interface":7}]}'`, BadAnswer, []string{"interface 7 of 0"}},
		"floods":     {"head -c 3000000 /dev/zero", BadAnswer, []string{"more than 1048576 bytes"}},
		"shouts":     {"head -c 3000000 /dev/zero >&2; exit 1", Internal, []string{"exit status 1"}},
		"told":       {`echo '{"cniVersion":"1.0.0","code":999,"msg":"no route","details":"to the API"}'; exit 1`, Internal, []string{"says: no route; to the API"}},
		"later":      {`echo '{"cniVersion":"1.0.0","code":11,"msg":"not yet"}'; exit 1`, NotReady, []string{"says: not yet"}},
		"missing":    {"", Missing, []string{`plugin "odd" is in none of`, "install it"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, bin := one(t, answersUnless(c.body), func(c *Config) { allowUnready(c) })
			r := sandbox(t, strings.ReplaceAll(name, " ", ""))
			began := time.Now()
			_, err := n.Add(t.Context(), r)
			if took := time.Since(began); took > 8*time.Second {
				t.Errorf("it took %s", took)
			}
			if CodeOf(err) != c.code {
				t.Errorf("code %v: %v", CodeOf(err), err)
			}
			for _, w := range append(c.want, "CNI ADD", "odd", n.current.Load().list.Name) {
				if !strings.Contains(fmt.Sprint(err), w) {
					t.Errorf("%q is not in: %v", w, err)
				}
			}
			if len(fmt.Sprint(err)) > 2000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			if c.body != "" {
				script(t, bin, "odd", "exit 0")
			}
			if err := n.Delete(t.Context(), r); err != nil {
				t.Errorf("delete: %v", err)
			}
			noLeaks(t, n)
		})
	}
}

func answersUnless(body string) string {
	if body == "" {
		return ""
	}
	return answers + body
}

// allowUnready keeps open from wanting a network that is ready.
func allowUnready(c *Config) { c.Period = time.Hour }

// TestNotExecutable: told as such, with the path.
func TestNotExecutable(t *testing.T) {
	n, bin := one(t, answers+okAnswer, nil)
	path := filepath.Join(bin, "odd")
	r := sandbox(t, "a")
	add(t, n, r)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.Delete(t.Context(), r); CodeOf(err) != Missing || !strings.Contains(err.Error(), path+" is not an executable file") {
		t.Errorf("%v", err)
	}
	for name, body := range map[string]string{"no interpreter": "#!/nowhere/sh\n", "no program": "\x7fELF\x00"} {
		if err := errors.Join(os.WriteFile(path, []byte(body), 0o755), os.Chmod(path, 0o755)); err != nil {
			t.Fatal(err)
		}
		if err := n.Delete(t.Context(), r); CodeOf(err) != Missing || !strings.Contains(err.Error(), "plugin odd cannot be run") {
			t.Errorf("%s: %v", name, err)
		}
	}
	script(t, bin, "odd", "echo what a mess; exit 0") // of DEL nothing is wanted
	if err := n.Delete(t.Context(), r); err != nil {
		t.Error(err)
	}
	noLeaks(t, n)
}

// TestChildrenOfPlugins: a child that holds the pipes of a plugin which has
// ended well delays nothing and lives on; all children of one that hangs die.
func TestChildrenOfPlugins(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pid")
	n, bin := one(t, answers+"sleep 1000 & echo $! > "+pids+"\n"+okAnswer, nil)
	r := sandbox(t, "a")
	began := time.Now()
	add(t, n, r)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("an ADD whose child goes on took %s", took)
	}
	child := pidIn(t, pids)
	if syscall.Kill(child, 0) != nil {
		t.Error("the child of a plugin that ended well was killed")
	}
	_ = syscall.Kill(child, syscall.SIGKILL)
	script(t, bin, "odd", answers+"( trap '' TERM; sleep 1000 ) & echo $! > "+pids+"; wait")
	if err := n.Delete(t.Context(), r); CodeOf(err) != Timeout {
		t.Errorf("%v", err)
	}
	child = pidIn(t, pids)
	for end := time.Now().Add(5 * time.Second); syscall.Kill(child, 0) == nil && !zombie(child); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the child of a plugin that hung is alive")
		}
	}
	script(t, bin, "odd", "exit 0")
	if err := n.Delete(t.Context(), r); err != nil {
		t.Error(err)
	}
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func pidIn(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestOthersGoOn: while plugins hang for more pods than may call plugins at
// once, other pods are attached and detached, Status answers, and a GC is put off.
func TestOthersGoOn(t *testing.T) {
	n, _ := one(t, answers+"case $CNI_COMMAND$CNI_CONTAINERID in ADD*hang*) sleep 1000;; esac\n"+okAnswer, func(c *Config) { c.Timeout = time.Minute })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const hung = atOnce + 4
	done := make(chan error, hung)
	base := sandbox(t, "base")
	for i := range hung {
		r := base
		r.SandboxID = fmt.Sprintf("hang-%d", i)
		go func() { _, err := n.Add(ctx, r); done <- err }()
	}
	time.Sleep(200 * time.Millisecond)
	began := time.Now()
	add(t, n, base)
	if err := n.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if err := n.Delete(t.Context(), base); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 2*patience+5*time.Second {
		t.Errorf("a pod waited %s for others", took)
	}
	// What is being attached is not collected, though nobody claims it.
	if err := n.collect(t.Context(), nil); err != nil {
		t.Errorf("collect: %v", err)
	}
	ids, err := n.records.list()
	if err != nil || len(ids) != hung {
		t.Errorf("%d of %d attachments that are being made are recorded: %v", len(ids), hung, err)
	}
	cancel()
	for range hung {
		if err := <-done; CodeOf(err) != Timeout || !strings.Contains(err.Error(), "given up") {
			t.Errorf("%v", err)
		}
	}
}

// TestMiddleFails: a chain whose middle plugin fails is undone by DEL of all
// plugins, the last first, and each is told what the first had answered.
func TestMiddleFails(t *testing.T) {
	bin, log := t.TempDir(), filepath.Join(t.TempDir(), "log")
	for _, p := range []string{"first", "second", "third"} {
		body := answers + "in=$(cat); echo \"$CNI_COMMAND " + p + " $in\" >> " + log + "\n"
		if p == "second" {
			body += "[ $CNI_COMMAND != ADD ] || exit 1\n"
		}
		script(t, bin, p, body+okAnswer)
	}
	n := withConf(t, "10.conflist", `{"cniVersion":"1.0.0","name":"NAME","plugins":[{"type":"first"},{"type":"second","capabilities":{"portMappings":true}},{"type":"third"}]}`,
		func(c *Config) { c.BinDirs = []string{bin} })
	r := sandbox(t, "a")
	r.PortMappings = []PortMapping{{HostPort: 1, ContainerPort: 2, Protocol: "sctp", HostIP: "::1"}}
	if _, err := n.Add(t.Context(), r); err == nil || !strings.Contains(err.Error(), "plugin second failed") {
		t.Fatalf("%v", err)
	}
	if err := n.Delete(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	body, _ := os.ReadFile(log)
	var order []string
	for _, l := range strings.Split(strings.TrimSpace(string(body)), "\n") {
		f := strings.SplitN(l, " ", 3)
		order = append(order, f[0]+" "+f[1])
		if told := strings.Contains(f[2], `"prevResult"`) && strings.Contains(f[2], "10.1.2.3"); told == (f[0]+" "+f[1] == "ADD first") {
			t.Errorf("%s %s: prevResult is told %v: %s", f[0], f[1], told, f[2])
		}
		if told := strings.Contains(f[2], `"protocol":"sctp"`) && strings.Contains(f[2], `"hostIP":"::1"`); told != (f[1] == "second") {
			t.Errorf("%s %s: the port is told %v: %s", f[0], f[1], told, f[2])
		}
	}
	if got, want := strings.Join(order, ", "), "ADD first, ADD second, DEL third, DEL second, DEL first"; got != want {
		t.Errorf("called were %s, want %s", got, want)
	}
	noLeaks(t, n)
}

// TestCapabilities: what plugins are told of a pod.
func TestCapabilities(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	n, _ := one(t, answers+"in=$(cat); echo \"$CNI_COMMAND $CNI_ARGS $CNI_IFNAME $in\" >> "+log+"\n"+okAnswer, nil)
	if err := n.SetPodRanges(t.Context(), []string{"10.9.0.0/24", "fd00:9::/64"}); err != nil {
		t.Fatal(err)
	}
	r := sandbox(t, "a")
	r.Bandwidth, r.DNS = &Bandwidth{IngressRate: 1000, IngressBurst: 9}, &DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"svc"}, Options: []string{"ndots:5"}}
	add(t, n, r)
	if err := n.Delete(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	body, _ := os.ReadFile(log)
	for _, l := range strings.Split(strings.TrimSpace(string(body)), "\n") {
		for _, want := range []string{
			"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=" + r.SandboxID + ";K8S_POD_UID=u-a eth0",
			`"bandwidth":{"ingressRate":1000,"ingressBurst":9}`, `"servers":["10.0.0.10"]`, `"ndots:5"`,
			`"ipRanges":[[{"subnet":"10.9.0.0/24"}],[{"subnet":"fd00:9::/64"}]]`,
		} {
			if !strings.Contains(l, want) {
				t.Errorf("%s is not in: %s", want, l)
			}
		}
		if strings.Contains(l, "portMappings\":[") || strings.Contains(l, "io.kubernetes") {
			t.Errorf("told without having it, or asking for it: %s", l)
		}
	}
}
