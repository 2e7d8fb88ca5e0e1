package podspec

import (
	"maps"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func long(n int) string { return strings.Repeat("a", n) }

func ptr[T any](v T) *T { return &v }

func certificate(edit func(*v1.PodCertificateProjection)) func(*v1.Pod) {
	return func(p *v1.Pod) {
		c := &v1.PodCertificateProjection{SignerName: "example.com/a", KeyType: "ED25519", CredentialBundlePath: "b"}
		edit(c)
		p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{
			Sources: []v1.VolumeProjection{{PodCertificate: c}}}}}}
	}
}

func windows(edit func(*v1.WindowsSecurityContextOptions)) func(*v1.Pod) {
	return func(p *v1.Pod) {
		w := &v1.WindowsSecurityContextOptions{}
		edit(w)
		p.Spec.SecurityContext.WindowsOptions = w
	}
}

func rules(n, codes int) func(*v1.Pod) {
	return func(p *v1.Pod) {
		r := v1.ContainerRestartRule{Action: v1.ContainerRestartRuleActionRestart, ExitCodes: &v1.ContainerRestartRuleOnExitCodes{
			Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: make([]int32, codes)}}
		p.Spec.Containers[0].RestartPolicy = ptr(v1.ContainerRestartPolicyNever)
		for range n {
			p.Spec.Containers[0].RestartPolicyRules = append(p.Spec.Containers[0].RestartPolicyRules, r)
		}
	}
}

// atLimits are pods at a limit and one beyond it, and pods that nobody defaulted.
var atLimits = []struct {
	name string
	edit func(*v1.Pod)
	want string
}{
	{"20 rules, 255 codes", rules(20, 255), "ok\n"},
	{"21 rules", rules(21, 1), "TooMany spec.containers[0].restartPolicyRules\n"},
	{"256 codes", rules(1, 256), "TooMany spec.containers[0].restartPolicyRules[0].exitCodes.values\n"},
	{"2048 characters of search", func(p *v1.Pod) { p.Spec.DNSConfig = &v1.PodDNSConfig{Searches: searches(2048)} }, "ok\n"},
	{"2049 characters of search", func(p *v1.Pod) { p.Spec.DNSConfig = &v1.PodDNSConfig{Searches: searches(2049)} }, "Invalid spec.dnsConfig.searches\n"},
	{"hostname of 65", func(p *v1.Pod) { p.Spec.HostnameOverride = ptr(long(33) + "." + long(31)) }, "TooLong spec.hostnameOverride\n"},
	{"sysctl of 253", func(p *v1.Pod) { p.Spec.SecurityContext.Sysctls = []v1.Sysctl{{Name: long(253)}} }, "ok\n"},
	{"sysctl of 254", func(p *v1.Pod) { p.Spec.SecurityContext.Sysctls = []v1.Sysctl{{Name: long(254)}} }, "Invalid spec.securityContext.sysctls[0].name\n"},
	{"profile of 4096", func(p *v1.Pod) {
		p.Spec.SecurityContext.AppArmorProfile = &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeLocalhost, LocalhostProfile: ptr(long(4096))}
	}, "TooLong spec.securityContext.appArmorProfile.localhostProfile\n"},
	{"domain of 255", windows(func(w *v1.WindowsSecurityContextOptions) { w.RunAsUserName = ptr(labels(255) + `\u`) }), "ok\n"},
	{"domain of 256", windows(func(w *v1.WindowsSecurityContextOptions) { w.RunAsUserName = ptr(labels(256) + `\u`) }), "Invalid spec.securityContext.windowsOptions.runAsUserName\n"},
	{"user of 104", windows(func(w *v1.WindowsSecurityContextOptions) { w.RunAsUserName = ptr(long(104)) }), "ok\n"},
	{"user of 105", windows(func(w *v1.WindowsSecurityContextOptions) { w.RunAsUserName = ptr(long(105)) }), "Invalid spec.securityContext.windowsOptions.runAsUserName\n"},
	{"credentials of 65537", windows(func(w *v1.WindowsSecurityContextOptions) { w.GMSACredentialSpec = ptr(long(65537)) }), "Invalid spec.securityContext.windowsOptions.gmsaCredentialSpec\n"},
	{"large annotations of a certificate", certificate(func(c *v1.PodCertificateProjection) {
		c.UserAnnotations = map[string]string{"example.com/a": long(300 << 10)}
	}), "TooLong spec.volumes[0].projected.sources[0].podCertificate.userAnnotations\n"},
	{"signer of a domain of 254", certificate(func(c *v1.PodCertificateProjection) { c.SignerName = labels(254) + "/a" }),
		"TooLong spec.volumes[0].projected.sources[0].podCertificate.signerName\n"},
	{"signer of 572", certificate(func(c *v1.PodCertificateProjection) {
		c.SignerName = "a." + long(63) + "/" + labels(253) + "." + labels(252)
	}),
		"TooLong spec.volumes[0].projected.sources[0].podCertificate.signerName\n"},
	{"nothing", func(p *v1.Pod) { *p = v1.Pod{} }, `Required metadata.name
Required metadata.namespace
Required spec.containers
Required spec.dnsPolicy
Required spec.restartPolicy
Required spec.terminationGracePeriodSeconds
`},
	{"a volume and no name", func(p *v1.Pod) {
		p.Name = ""
		p.Spec.Volumes = []v1.Volume{{Name: "a", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}}}
	}, "Required metadata.name\nRequired spec.volumes[0].ephemeral.volumeClaimTemplate\n"},
}

// labels makes a name of n characters from parts of 63.
func labels(n int) string {
	b := []byte(long(n))
	for i := 50; i < n-1; i += 50 {
		b[i] = '.'
	}
	return string(b)
}

// searches makes 32 domains that are n characters long with the spaces between them.
func searches(n int) (all []string) {
	n -= 31
	for range 31 {
		all = append(all, long(60))
		n -= 60
	}
	return append(all, labels(n))
}

func smallest() *v1.Pod {
	p := &v1.Pod{}
	p.Name, p.Namespace = "p", "default"
	p.Spec.Containers = []v1.Container{{Name: "c", Image: "i"}}
	return p
}

func TestLimits(t *testing.T) {
	for _, c := range atLimits {
		t.Run(c.name, func(t *testing.T) {
			p := smallest()
			Default(p)
			c.edit(p)
			if got := told(Validate(p)); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

// A pod that nobody defaulted, and one that lacks every pointer, is refused and not
// stumbled over.
func TestNothingGiven(t *testing.T) {
	for name, p := range map[string]*v1.Pod{"empty": {}, "smallest": smallest()} {
		if errs := Validate(p); len(errs) == 0 {
			t.Errorf("%s: taken without defaults", name)
		}
		if errs := ValidateResize(p, p); len(errs) == 0 {
			t.Errorf("%s: resized without defaults", name)
		}
		if errs := ValidateEphemeralContainersUpdate(p, p); len(errs) == 0 {
			t.Errorf("%s: changed without defaults", name)
		}
	}
}

// Errors come in the same order each time: a message that moves is a new message.
func TestOrder(t *testing.T) {
	p := smallest()
	p.Annotations = map[string]string{}
	maps.Copy(p.Annotations, map[string]string{v1.SeccompPodAnnotationKey: "a", v1.SeccompContainerAnnotationKeyPrefix + "c": "b",
		v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + "c": "x", v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + "d": "x"})
	Default(p)
	want := Validate(p).ToAggregate().Error()
	for range 20 {
		if got := Validate(p).ToAggregate().Error(); got != want {
			t.Fatalf("%s\n%s", want, got)
		}
	}
}
