package node

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// TestIdentity sees from inside containers who they are told to be: environment,
// names, resolver, mounts by expression; and from outside that log shippers find
// every line.
func TestIdentity(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	config := filepath.Join(a.Dir, "config.yaml")
	text := "apiVersion: berth.dev/v1alpha1\nkind: Configuration\nclusterDNS: [10.96.0.10]\nclusterDomain: cluster.test\nnodeName: node-a\ncontainerLogs: {maxSize: 4Ki, maxFiles: 5}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Flags = []string{"--config", config}
	a.Start()
	a.ImportBusybox()
	for name, test := range map[string]func(*testing.T, *Agent){
		"environment": testEnvironment, "missing objects": testMissingObjects, "file keys": testFileKeys, "names": testNames, "hosts files": testHostsFiles, "resolvers": testResolvers,
		"subPathExpr": testSubPathExpr, "devices and last words": testDevices, "http hooks": testHTTPHooks, "refused": testUnsupported, "log links": testLogLinks,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, a.For(t))
		})
	}
}

// up places a pod and takes it away when the test ends. It does not wait.
func (a *Agent) up(name, manifest string) {
	a.T.Helper()
	a.Place(name+".yaml", manifest)
	a.T.Cleanup(func() {
		a.Unplace(name + ".yaml")
		a.WaitGone(name, 30*time.Second)
	})
}

// inside runs a command line in the pod's container c.
func (a *Agent) inside(pod, script string) string {
	a.T.Helper()
	return strings.TrimRight(a.Must("exec", pod, "-c", "c", "--", "sh", "-c", script), "\n")
}

func (a *Agent) sees(pod, script, want string) {
	a.T.Helper()
	if got := a.inside(pod, script); got != want {
		a.T.Errorf("%s: %s: got %q, want %q", pod, script, got, want)
	}
}

func testEnvironment(t *testing.T, a *Agent) {
	a.up("env", `apiVersion: v1
kind: ConfigMap
metadata: {name: env-map}
data: {color: red, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: env-secret}
stringData: {word: hush}
---
apiVersion: v1
kind: Pod
metadata: {name: env, labels: {app.example/tier: front}, annotations: {note: "two words"}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: `+Busybox+`
    command: [sh, -c, 'echo "$0 $1"; trap "exit 0" TERM; while :; do sleep 1 & wait $!; done', "$(GREETING)", "$$(GREETING) $(NOBODY)"]
    resources: {requests: {cpu: 20m, memory: 8Mi}, limits: {memory: 64Mi}}
    envFrom:
    - {prefix: MAP_, configMapRef: {name: env-map}}
    - secretRef: {name: env-secret}
    - configMapRef: {name: nothing, optional: true}
    env:
    - {name: PLAIN, value: plain}
    - {name: EMPTY}
    - {name: GREETING, value: "hello $(PLAIN) $(MAP_color)"}
    - {name: ESCAPED, value: "$$(PLAIN) $(LATER) $$$$ $(PLAIN"}
    - {name: LATER, value: later}
    - {name: MAP_shape, value: square}
    - {name: KEY, valueFrom: {configMapKeyRef: {name: env-map, key: shape}}}
    - {name: SECRET, valueFrom: {secretKeyRef: {name: env-secret, key: word}}}
    - {name: ABSENT, valueFrom: {secretKeyRef: {name: env-secret, key: none, optional: true}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app.example/tier']"}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: HOST_IPS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: POD_IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: CPU_LIMIT, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
`)
	p := a.Wait("env", 30*time.Second, Ready)
	got := map[string]string{}
	for _, line := range strings.Split(a.inside("env", `tr '\0' '\n' < /proc/1/environ`), "\n") {
		name, value, _ := strings.Cut(line, "=")
		got[name] = value
	}
	var ips, hostIPs []string
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	for _, ip := range p.Status.HostIPs {
		hostIPs = append(hostIPs, ip.IP)
	}
	for name, want := range map[string]string{
		"PLAIN": "plain", "EMPTY": "", "GREETING": "hello plain red", "ESCAPED": "$(PLAIN) $(LATER) $$ $(PLAIN", "LATER": "later", "MAP_color": "red", "MAP_shape": "square",
		"word": "hush", "KEY": "round", "SECRET": "hush", "POD": "env", "NAMESPACE": "default", "POD_UID": string(p.UID), "TIER": "front", "NOTE": "two words", "NODE": "node-a", "ACCOUNT": "",
		"HOST_IP": p.Status.HostIP, "HOST_IPS": strings.Join(hostIPs, ","), "POD_IP": p.Status.PodIP, "POD_IPS": strings.Join(ips, ","), "CPU": "20", "MEMORY": "64",
	} {
		value, ok := got[name]
		if !ok || value != want {
			t.Errorf("%s=%q (set: %v), want %q", name, value, ok, want)
		}
	}
	if n, err := strconv.Atoi(got["CPU_LIMIT"]); err != nil || n < 1 {
		t.Errorf("a limit that is not set is what the node has: %q", got["CPU_LIMIT"])
	}
	if _, there := got["ABSENT"]; there || p.Status.PodIP == "" || p.Status.HostIP == "" {
		t.Errorf("ABSENT set: %v; status %+v", there, p.Status)
	}
	if log := a.Must("logs", "env"); log != "hello plain red $(GREETING) $(NOBODY)\n" {
		t.Errorf("arguments: %q", log)
	}
}

func testMissingObjects(t *testing.T, a *Agent) {
	for name, tt := range map[string]struct{ env, text string }{
		"no-map":    {"{configMapKeyRef: {name: absent, key: k}}", `configmap "absent" not found`},
		"no-secret": {"{secretKeyRef: {name: absent, key: k}}", `secret "absent" not found`},
		"no-key":    {"{configMapKeyRef: {name: one-key, key: other}}", "couldn't find key other in ConfigMap default/one-key"},
	} {
		manifest := podOf(name, "    env: [{name: E, valueFrom: "+tt.env+"}]", "")
		if name == "no-key" {
			manifest += "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: one-key}\ndata: {k: v}\n"
		}
		a.up(name, manifest)
		a.Wait(name, 20*time.Second, waiting("CreateContainerConfigError", tt.text))
	}
}

func testFileKeys(t *testing.T, a *Agent) {
	spec := func() string {
		return `  initContainers:
  - name: writer
    image: ` + Busybox + `
    command: [sh, -c, "mkdir -p /w/d; printf \"# written by an init container\\nA='one' # why\\nB='two\\nlines'\\nA='late'\\n\" > /w/d/env; ln -s /etc/passwd /w/out; printf 'A=bare\\n' > /w/bad"]
    volumeMounts: [{name: work, mountPath: /w}]
  volumes: [{name: work, emptyDir: {}}]`
	}
	ref := func(path, key, more string) string {
		return fmt.Sprintf("{name: V%d, valueFrom: {fileKeyRef: {volumeName: work, path: %s, key: %s%s}}}", time.Now().UnixNano(), path, key, more)
	}
	a.up("filekey", podOf("filekey", `    env:
    - {name: A, valueFrom: {fileKeyRef: {volumeName: work, path: d/env, key: A}}}
    - {name: B, valueFrom: {fileKeyRef: {volumeName: work, path: d/env, key: B}}}
    - {name: Z, valueFrom: {fileKeyRef: {volumeName: work, path: d/env, key: Z, optional: true}}}`, spec()))
	a.Wait("filekey", 30*time.Second, Ready)
	a.sees("filekey", `echo "$A|$B|${Z-unset}"`, "one|two\nlines|unset")
	for name, tt := range map[string]struct{ ref, text string }{
		"filekey-none": {ref("d/env", "Z", ""), `environment variable key "Z" not found in file "d/env"`},
		"filekey-bad":  {ref("bad", "A", ", optional: true"), "couldn't parse env file"},
		"filekey-out":  {ref("out", "root", ""), "couldn't parse env file"},
	} {
		a.up(name, podOf(name, "    env: ["+tt.ref+"]", spec()))
		a.Wait(name, 30*time.Second, waiting("CreateContainerConfigError", tt.text))
	}
}

func testNames(t *testing.T, a *Agent) {
	long := strings.Repeat("n", 62) + "-tail"
	for name, tt := range map[string]struct{ spec, want string }{
		"plain-name": {"", "plain-name"},
		"own-name":   {"  hostname: chosen", "chosen"},
		"in-domain":  {"  hostname: chosen\n  subdomain: sub", "chosen"},
		"as-fqdn":    {"  hostname: chosen\n  subdomain: sub\n  setHostnameAsFQDN: true", "chosen.sub.default.svc.cluster.test"},
		"overridden": {"  hostnameOverride: other.example.org", "other.example.org"},
		long:         {"", strings.Repeat("n", 62)},
	} {
		a.up(name, podOf(name, "", tt.spec))
		a.Wait(name, 30*time.Second, Ready)
		a.sees(name, "hostname; cat /proc/sys/kernel/hostname", tt.want+"\n"+tt.want)
	}
	a.up("too-long", podOf("too-long", "", "  hostname: "+strings.Repeat("h", 60)+"\n  subdomain: sub\n  setHostnameAsFQDN: true"))
	Eventually(t, 20*time.Second, func() error {
		why, err := a.Berth("why", "too-long")
		if !strings.Contains(why, "failed to construct FQDN from pod hostname and cluster domain") {
			return fmt.Errorf("%s%v", why, err)
		}
		return nil
	})
}

func testHostsFiles(t *testing.T, a *Agent) {
	alias := "  hostAliases: [{ip: 192.0.2.7, hostnames: [one.example, two.example]}]"
	a.up("hosts", podOf("hosts", "", alias+"\n  hostname: me\n  subdomain: sub"))
	p := a.Wait("hosts", 30*time.Second, Ready)
	got := a.inside("hosts", "cat /etc/hosts")
	want := "fe00::2\tip6-allrouters\n"
	for _, ip := range p.Status.PodIPs {
		want += ip.IP + "\tme.sub.default.svc.cluster.test\tme\n"
	}
	want += "\n# Entries added by HostAliases.\n192.0.2.7\tone.example\ttwo.example"
	if !strings.HasPrefix(got, "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n") || !strings.HasSuffix(got, want) {
		t.Errorf("hosts file %q, want the end %q", got, want)
	}
	a.up("hosts-node", podOf("hosts-node", "", alias+"\n  hostNetwork: true"))
	a.Wait("hosts-node", 30*time.Second, Ready)
	node, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	want = "# Kubernetes-managed hosts file (host network).\n" + string(node) + "\n# Entries added by HostAliases.\n192.0.2.7\tone.example\ttwo.example"
	if got := a.inside("hosts-node", "cat /etc/hosts"); got != want {
		t.Errorf("hosts file in the node's network %q, want %q", got, want)
	}
	a.up("hosts-own", podOf("hosts-own", "    volumeMounts: [{name: f, mountPath: /etc/hosts, subPath: mine}]", alias+"\n  volumes: [{name: f, downwardAPI: {items: [{path: mine, fieldRef: {fieldPath: metadata.name}}]}}]"))
	a.Wait("hosts-own", 30*time.Second, Ready)
	a.sees("hosts-own", "cat /etc/hosts", "hosts-own")
}

func testResolvers(t *testing.T, a *Agent) {
	cluster := "search default.svc.cluster.test svc.cluster.test cluster.test"
	for name, tt := range map[string]struct {
		spec string
		want []string // lines that there must be
	}{
		"dns-first":     {"", []string{cluster, "nameserver 10.96.0.10", "options ndots:5"}},
		"dns-first-net": {"  dnsPolicy: ClusterFirstWithHostNet\n  hostNetwork: true", []string{cluster, "nameserver 10.96.0.10"}},
		"dns-none": {"  dnsPolicy: None\n  dnsConfig: {nameservers: [192.0.2.53], searches: [a.example], options: [{name: ndots, value: '2'}, {name: edns0}]}",
			[]string{"search a.example", "nameserver 192.0.2.53", "options ndots:2 edns0"}},
		"dns-merged": {"  dnsConfig: {nameservers: [192.0.2.53], searches: [a.example], options: [{name: ndots, value: '2'}]}", []string{"nameserver 10.96.0.10", "nameserver 192.0.2.53", "options ndots:2"}},
		"dns-cut":    {"  dnsPolicy: None\n  dnsConfig: {nameservers: [192.0.2.1, 192.0.2.2, 192.0.2.3], searches: [" + strings.Repeat("x", 60) + "]}", []string{"nameserver 192.0.2.3"}},
	} {
		a.up(name, podOf(name, "", tt.spec))
		a.Wait(name, 30*time.Second, Ready)
		got := strings.Split(a.inside(name, "cat /etc/resolv.conf"), "\n")
		for _, line := range tt.want {
			if !slices.ContainsFunc(got, func(have string) bool {
				return have == line || strings.HasPrefix(have, line+" ") && strings.HasPrefix(line, "search")
			}) {
				t.Errorf("%s: no line %q in %q", name, line, got)
			}
		}
	}
	a.up("dns-node", podOf("dns-node", "", "  dnsPolicy: Default"))
	a.Wait("dns-node", 30*time.Second, Ready)
	node, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	servers := regexp.MustCompile(`(?m)^nameserver .*$`)
	if got, want := servers.FindAllString(a.inside("dns-node", "cat /etc/resolv.conf"), -1), servers.FindAllString(string(node), 3); !slices.Equal(got, want) {
		t.Errorf("name servers of the node: %v, want %v", got, want)
	}
}

func testSubPathExpr(t *testing.T, a *Agent) {
	a.up("expr", podOf("expr", `    env:
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: WHERE, value: "in/$(POD)"}
    volumeMounts:
    - {name: work, mountPath: /part, subPathExpr: "$(WHERE)/x"}
    - {name: work, mountPath: /all}`, "  volumes: [{name: work, emptyDir: {}}]"))
	a.Wait("expr", 30*time.Second, Ready)
	a.sees("expr", "echo here > /part/file; cat /all/in/expr/x/file", "here")
	a.up("expr-none", podOf("expr-none", `    volumeMounts: [{name: work, mountPath: /part, subPathExpr: "$(NOBODY)"}]`, "  volumes: [{name: work, emptyDir: {}}]"))
	a.Wait("expr-none", 30*time.Second, waiting("CreateContainerConfigError", "NOBODY"))
}

func testDevices(t *testing.T, a *Agent) {
	a.up("device", podOf("device", `    securityContext: {privileged: true}
    volumeMounts:
    - {name: zero, mountPath: /given/zero}
    - {name: work, mountPath: /work, readOnly: true, recursiveReadOnly: IfPossible}
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo said by a hook > /dev/termination-log"]}}}`,
		"  restartPolicy: Never\n  volumes: [{name: zero, hostPath: {path: /dev/zero, type: CharDevice}}, {name: work, emptyDir: {}}]"))
	a.Wait("device", 30*time.Second, Ready)
	a.sees("device", "test -c /given/zero && head -c 3 /given/zero | tr '\\0' z; touch /work/x 2>&1 | grep -c Read-only", "zzz1")
	_, _ = a.Berth("exec", "device", "-c", "c", "--", "kill", "1") // it may end the exec too
	a.Wait("device", 20*time.Second, func(p *v1.Pod) error {
		if s := containerStatus(p, "c").State.Terminated; s == nil || s.Message != "said by a hook\n" {
			return fmt.Errorf("terminated %+v", s)
		}
		return nil
	})
}

func testHTTPHooks(t *testing.T, a *Agent) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // pods in the node's network reach it
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var asked []string
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, fmt.Sprintf("%s %s %s auth=%q own=%s", r.Method, r.URL.Path, r.UserAgent(), r.Header.Get("Authorization"), r.Header.Get("X-Own")))
		w.WriteHeader(http.StatusTeapot)
	})}
	go func() { _ = server.Serve(listener) }() // ends with Close
	t.Cleanup(func() { server.Close() })
	hook := func(kind, path, scheme string) string {
		return fmt.Sprintf("%s: {httpGet: {host: 127.0.0.1, port: %d, path: %s, scheme: %s, httpHeaders: [{name: Authorization, value: Bearer x}, {name: X-Own, value: mine}]}}", kind, listener.Addr().(*net.TCPAddr).Port, path, scheme)
	}
	a.Place("hooked.yaml", podOf("hooked", "    lifecycle: {"+hook("postStart", "/up", "HTTP")+", "+hook("preStop", "/down", "HTTPS")+"}", "  hostNetwork: true"))
	a.Wait("hooked", 30*time.Second, Ready) // whatever the status of the answer
	a.Unplace("hooked.yaml")
	a.WaitGone("hooked", 30*time.Second)
	mu.Lock()
	defer mu.Unlock()
	if want := []string{`GET /up kube-lifecycle/1.36 auth="Bearer x" own=mine`, `GET /down kube-lifecycle/1.36 auth="" own=mine`}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	if events := a.Must("get", "events", "-A"); !strings.Contains(events, "LifecycleHTTPFallback") {
		t.Errorf("no event about the fallback to HTTP:\n%s", events)
	}
}

// testUnsupported: what this machine's runtimes cannot do is refused in a
// sentence, and what they can do works.
func testUnsupported(t *testing.T, a *Agent) {
	a.up("users", podOf("users", "", "  hostUsers: false"))
	Eventually(t, 30*time.Second, func() error {
		p, err := a.Pod("users")
		if err != nil {
			return err
		}
		if Ready(p) == nil {
			a.sees("users", "awk '{print ($1 == 0 && $2 >= 65536)}' /proc/self/uid_map", "1")
			return nil
		}
		why, err := a.Berth("why", "users")
		if !strings.Contains(why, "can't set spec.hostUsers: false, runtime does not support user namespaces: ") {
			return fmt.Errorf("%s%v", why, err)
		}
		return nil
	})
}

// shipper reads links as log shippers do: it looks for them in a directory,
// follows each by name, and opens it again when it leads to another file.
type shipper struct {
	dir, prefix string
	open        map[string]*os.File
	got         map[string]*bytes.Buffer // by link
}

func (s *shipper) look(t *testing.T) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), s.prefix) && s.open[e.Name()] == nil {
			if f, err := os.Open(filepath.Join(s.dir, e.Name())); err == nil {
				s.open[e.Name()] = f
				if s.got[e.Name()] == nil {
					s.got[e.Name()] = &bytes.Buffer{}
				}
			}
		}
	}
	for name, f := range s.open {
		there, err := os.Stat(filepath.Join(s.dir, name)) // before reading: what was written until the change is read
		if _, err := io.Copy(s.got[name], f); err != nil {
			t.Error(err)
		}
		if mine, e := f.Stat(); err == nil && e == nil && !os.SameFile(mine, there) {
			f.Close()
			next, err := os.Open(filepath.Join(s.dir, name))
			if err != nil {
				delete(s.open, name)
				continue
			}
			s.open[name] = next
		}
	}
}

func (s *shipper) run(ctx context.Context, t *testing.T) {
	for ctx.Err() == nil {
		s.look(t)
		time.Sleep(5 * time.Millisecond)
	}
	for name, f := range s.open {
		if _, err := io.Copy(s.got[name], f); err != nil {
			t.Error(err)
		}
		f.Close()
	}
}

func testLogLinks(t *testing.T, a *Agent) {
	links := filepath.Join(a.Dir, "containers")
	name := regexp.MustCompile(`^linked_default_c-[0-9a-f]{64}\.log$`)
	s := &shipper{dir: links, prefix: "linked_default_", open: map[string]*os.File{}, got: map[string]*bytes.Buffer{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.run(ctx, t) }()
	defer func() { cancel(); <-done }()
	body := strings.Replace(podOf("linked", "", ""), `trap "exit 0" TERM; while :; do sleep 1 & wait $!; done`,
		`trap "exit 0" TERM; n=0; while :; do n=$((n+1)); echo line $n of a log that is followed by its link; usleep 5000; [ -e /stop ] && exit 0; done`, 1)
	a.Place("linked.yaml", body)
	a.Wait("linked", 30*time.Second, Ready)
	logs, err := filepath.Glob(filepath.Join(a.Dir, "log", "default_linked_*", "c"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("log directory: %v, %v", logs, err)
	}
	Eventually(t, 60*time.Second, func() error { // the log is rotated, more than once
		if rotated, _ := filepath.Glob(logs[0] + "/0.log.*"); len(rotated) < 2 {
			return fmt.Errorf("rotated: %v", rotated)
		}
		return nil
	})
	a.inside("linked", "touch /stop")
	a.Wait("linked", 30*time.Second, func(p *v1.Pod) error {
		if c := containerStatus(p, "c"); c.RestartCount < 1 || c.State.Running == nil {
			return fmt.Errorf("not restarted: %+v", c)
		}
		return nil
	})
	time.Sleep(300 * time.Millisecond) // the second instance says something
	entries, err := os.ReadDir(links)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "linked_") && !name.MatchString(e.Name()) {
			t.Errorf("a shipper could not take this name apart: %s", e.Name())
		}
	}
	a.Unplace("linked.yaml")
	a.WaitGone("linked", 30*time.Second)
	cancel()
	<-done
	if len(s.got) != 2 {
		t.Errorf("%d links, want one for each instance", len(s.got))
	}
	for link, text := range s.got {
		inOrder(t, link, text)
	}
	if left, _ := filepath.Glob(links + "/linked_*"); len(left) != 0 {
		t.Errorf("links are left: %v", left)
	}
}

// inOrder sees that no line is missing and none comes twice.
func inOrder(t *testing.T, link string, text *bytes.Buffer) {
	n := 0
	for lines := bufio.NewScanner(text); lines.Scan(); {
		n++
		if want := fmt.Sprintf(" stdout F line %d of a log that is followed by its link", n); !strings.HasSuffix(lines.Text(), want) {
			t.Fatalf("%s: line %d is %q", link, n, lines.Text())
		}
	}
	if n < 5 {
		t.Errorf("%s: only %d lines were shipped", link, n)
	}
}

// TestLogLinksAfterKill kills the agent while pods run, takes logs and links away
// behind its back, and finds the links right after the next start.
func TestLogLinksAfterKill(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	a.ImportBusybox()
	a.Place("kept.yaml", podOf("kept", "", ""))
	a.Wait("kept", 30*time.Second, Ready)
	a.end(syscall.SIGKILL)
	links := filepath.Join(a.Dir, "containers")
	dangling := filepath.Join(links, "gone_default_c-0123.log")
	if err := os.Symlink(filepath.Join(a.Dir, "log", "default_gone_u", "c", "0.log"), dangling); err != nil {
		t.Fatal(err)
	}
	a.Start()
	a.Wait("kept", 30*time.Second, Ready)
	if _, err := os.Lstat(dangling); !os.IsNotExist(err) {
		t.Errorf("a dangling link stays: %v", err)
	}
	have, err := filepath.Glob(links + "/kept_default_c-*.log")
	if err != nil || len(have) != 1 {
		t.Fatalf("links %v, %v", have, err)
	}
	if st, err := os.Stat(have[0]); err != nil || !st.Mode().IsRegular() {
		t.Errorf("the link leads to %v, %v", st, err)
	}
	a.Stop()
	a.Purge()
	if have, _ = filepath.Glob(links + "/*"); len(have) != 0 {
		t.Errorf("links are left after purge: %v", have)
	}
}
