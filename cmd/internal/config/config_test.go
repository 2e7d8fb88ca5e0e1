package config

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/spf13/pflag"
)

// TestGolden holds the texts of everything that can be wrong with a file.
func TestGolden(t *testing.T) {
	datadriven.RunTest(t, "testdata/problems", func(t *testing.T, d *datadriven.TestData) string {
		content := d.Input + "\n"
		if d.Cmd == "fields" {
			content = "apiVersion: berth.dev/v1alpha1\nkind: Configuration\n" + content
		}
		if err := Parse("config.yaml", []byte(content)).Check(); err != nil {
			return err.Error()
		}
		return "ok"
	})
}

// bare is c without what decoding remembers.
func bare(c *Config) Config {
	b := *c
	b.problems, b.positions = nil, nil
	return b
}

func TestDefaultFileIsTheDefault(t *testing.T) {
	c := Parse("default.yaml", []byte(Default()))
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	want := *New()
	want.Manifests.Files, want.Manifests.URLs, want.Manifests.Headers, want.Network.Subnets = []string{}, []string{}, map[string]string{}, []string{}
	want.NodeLabels, want.SystemReserved, want.KubeReserved, want.Runtime.Handlers = map[string]string{}, map[string]string{}, map[string]string{}, map[string]Handler{}
	want.RegisterWithTaints, want.ClusterDNS, want.AllowedUnsafeSysctls = []Taint{}, []string{}, []string{}
	if got := bare(c); !reflect.DeepEqual(got, want) {
		t.Errorf("the default file gives\n%+v\nthe defaults are\n%+v", got, want)
	}
	var each func(reflect.Type, string)
	each = func(typ reflect.Type, path string) {
		for name, i := range fields(typ) {
			at := strings.TrimPrefix(path+"."+name, ".")
			if _, ok := c.positions[at]; !ok {
				t.Errorf("the default file lacks the field %s", at)
			}
			if f := typ.Field(i).Type; f.Kind() == reflect.Struct {
				each(f, at)
			}
		}
	}
	each(reflect.TypeFor[Config](), "")
}

func load(t *testing.T, args ...string) (*Config, error) {
	t.Helper()
	fs := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	o := Flags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o.Load()
}

func TestFlagsWin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	body := "apiVersion: berth.dev/v1alpha1\nkind: Configuration\nmaxPods: 7\nstateDir: /run/there\nmanifests: {directories: [/a, /b], headers: {Authorization: Bearer secret}, urls: [\"http://h/m\"]}\n"
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := load(t, "--config", path, "--max-pods=9", "--manifest-dir=rel", "--manifest-file=-", "--log-format=json", "--seccomp-default=false", "--node-labels=a=b,c=d", "--pod-max-pids=5", "--resolv-conf=there")
	if err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if c.MaxPods != 9 || c.StateDir != "/run/there" || len(c.Manifests.Directories) != 1 || c.Manifests.Directories[0] != filepath.Join(wd, "rel") {
		t.Errorf("got %+v", c)
	}
	if c.SeccompDefault || c.NodeLabels["c"] != "d" || c.PodPidsLimit != 5 || c.ResolvConf != filepath.Join(wd, "there") {
		t.Errorf("got %+v", c)
	}
	o := c.Options(slog.New(slog.DiscardHandler), "v1")
	if o.Socket != "/run/there/berth.sock" || o.CRISocket != "/run/there/cri.sock" || o.Stdin == nil || len(o.ManifestFiles) != 0 ||
		o.ManifestHeader.Get("Authorization") != "Bearer secret" || o.MaxPods != 9 || o.CrashLoopMax != 300*time.Second || o.LogMaxSize != 10<<20 || o.Version != "v1" {
		t.Errorf("options: %+v", o)
	}
	var log bytes.Buffer
	c.Logger(&log).Info("x")
	if !strings.HasPrefix(log.String(), "{") {
		t.Errorf("log format: %s", &log)
	}
}

func TestFlagErrorsNameTheFlag(t *testing.T) {
	_, err := load(t, "--node-labels=a=b c", "--cluster-dns=x", "--allowed-unsafe-sysctls=vm.*", "--max-pods=0", "--log-level=loud", "--manifest-url=ftp://x")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"--max-pods: maxPods: expected a number from 1 to 10000, got 0", "--log-level: logging.level: expected debug", "--manifest-url: manifests.urls[0]: expected an address",
		"--node-labels: nodeLabels[a]: ", "--cluster-dns: clusterDNS[0]: ", "--allowed-unsafe-sysctls: allowedUnsafeSysctls[0]: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
}

func TestNodeOptions(t *testing.T) {
	c := Parse("c", []byte(`apiVersion: berth.dev/v1alpha1
kind: Configuration
systemReserved: {cpu: 500m, memory: 1Gi}
kubeReserved: {cpu: "1"}
registerWithTaints: [{key: a, value: b, effect: NoExecute}]
podPidsLimit: 100
cpuCFSQuota: false
memorySwap: {swapBehavior: LimitedSwap}
allowedUnsafeSysctls: ["kernel.msg*"]
userNamespaces: {idsPerPod: 131072}
runtime:
  handlers:
    fast: /usr/bin/crun
    vm: {path: /opt/vm, args: ["--debug"], annotations: ["io.vm.*"], defaultAnnotations: {a: b}}
`))
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	o := c.Options(slog.New(slog.DiscardHandler), "v1")
	if cpu, memory := o.Reserved["cpu"], o.Reserved["memory"]; cpu.MilliValue() != 1500 || memory.Value() != 1<<30 {
		t.Errorf("reserved: %v", o.Reserved)
	}
	if len(o.Taints) != 1 || o.Taints[0].ToString() != "a=b:NoExecute" || o.PodPidsLimit != 100 || !o.NoCPUQuota || !o.LimitedSwap || o.IDsPerPod != 131072 ||
		!reflect.DeepEqual(o.UnsafeSysctls, []string{"kernel.msg*"}) || o.Runtimes["fast"].Path != "/usr/bin/crun" || o.CPUPeriod != 100*time.Millisecond {
		t.Errorf("options: %+v", o)
	}
	if vm := o.Runtimes["vm"]; vm.Path != "/opt/vm" || vm.Name != "vm" || vm.Defaults["a"] != "b" || !slices.Equal(vm.Args, []string{"--debug"}) || !slices.Equal(vm.Annotations, []string{"io.vm.*"}) {
		t.Errorf("handler: %+v", vm)
	}
	if o := New().Options(slog.New(slog.DiscardHandler), "v1"); o.PodPidsLimit != 0 || o.NoCPUQuota || o.LimitedSwap || o.NoStorageLimits {
		t.Errorf("default options: %+v", o)
	}
}

func TestMissingFile(t *testing.T) {
	if _, err := load(t, "--config", filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("a named file that is missing: %v", err)
	}
}

func TestSecretsStayOut(t *testing.T) {
	c := Parse("c", []byte("apiVersion: berth.dev/v1alpha1\nkind: Configuration\nmanifests:\n  urls: ['ftp://user:hunter2@h/']\n  headers: {Authorization: \"hunter2\\n\", \"b d\": hunter2, c: [hunter2]}\n"))
	err := c.Check()
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

func FuzzConfiguration(f *testing.F) {
	f.Add([]byte(Default()))
	for _, s := range []string{"", "a", "- a", "a: &a [*a]", "{a: {b: c}}", "apiVersion: 1\nkind: []", "--- a\n--- b", "maxPods: 0x7f\ncontainerLogs: {maxSize: 1e99}", "a: &x {k: *x}", "\xff\xfe", "manifests: {headers: {? [a] : b}}", "? {a: b}\n: c"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		c := Parse("fuzz", content)
		err := c.Check()
		if err == nil {
			c.Options(slog.New(slog.DiscardHandler), "")
			c.Logger(io.Discard).Info("x")
			if c.APIVersion != Version || c.MaxPods < 1 || !filepath.IsAbs(c.AgentSocket()) {
				t.Errorf("accepted: %+v", c)
			}
			return
		}
		if ps := err.(Problems); len(ps) == 0 || ps.Error() == "" {
			t.Error("an error that says nothing")
		}
	})
}
