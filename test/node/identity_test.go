package node

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestIdentity sees from inside containers who they are told to be: environment,
// names, resolver, mounts by expression; and from outside that log shippers find
// every line.
func TestIdentity(t *testing.T) {
	binary := Binary(t, "BERTH_BIN")
	for _, oci := range []string{"crun", "runc"} {
		t.Run(oci, func(t *testing.T) { identity(t, New(t, binary), oci) })
	}
}

func identity(t *testing.T, a *Agent, oci string) {
	config := filepath.Join(a.Dir, "config.yaml")
	text := "apiVersion: berth.dev/v1alpha1\nkind: Configuration\nclusterDNS: [10.96.0.10]\nclusterDomain: cluster.test\nnodeName: node-a\ncontainerLogs: {maxSize: 4Ki, maxFiles: 5}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Flags = []string{"--config", config, "--oci-runtime", oci}
	a.Start()
	a.ImportBusybox()
	for name, test := range map[string]func(*testing.T, *Agent){
		"environment": testEnvironment, "missing objects": testMissingObjects, "file keys": testFileKeys, "names": testNames, "hosts files": testHostsFiles,
		"resolvers": testResolvers, "subPathExpr": testSubPathExpr, "devices and last words": testDevices, "http hooks": testHTTPHooks, "refused": testUnsupported,
		"user namespaces": testUserNamespaces, "image volumes": testImageVolumes, "log links": testLogLinks,
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

// environmentPod gets variables from everywhere.
const environmentPod = `apiVersion: v1
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
    image: ` + Busybox + `
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
`

func testEnvironment(t *testing.T, a *Agent) {
	a.up("env", environmentPod)
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
