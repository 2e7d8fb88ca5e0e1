package differential

import (
	"reflect"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// enums holds the values of the API's named strings, and for each one that is none.
var enums = map[reflect.Type][]string{
	reflect.TypeFor[v1.PersistentVolumeMode]():                    words("Block Filesystem block"),
	reflect.TypeFor[v1.PersistentVolumeAccessMode]():              words("ReadWriteOnce ReadOnlyMany ReadWriteMany ReadWriteOncePod RWO"),
	reflect.TypeFor[v1.HostPathType]():                            words("DirectoryOrCreate Directory FileOrCreate File Socket CharDevice BlockDevice file"),
	reflect.TypeFor[v1.StorageMedium]():                           words("Memory HugePages HugePages-2Mi HugePages-1Gi HugePages-x Disk"),
	reflect.TypeFor[v1.Protocol]():                                words("TCP UDP SCTP tcp ICMP"),
	reflect.TypeFor[v1.AzureDataDiskCachingMode]():                words("None ReadOnly ReadWrite Other"),
	reflect.TypeFor[v1.AzureDataDiskKind]():                       words("Shared Dedicated Managed Other"),
	reflect.TypeFor[v1.MountPropagationMode]():                    words("None HostToContainer Bidirectional Both"),
	reflect.TypeFor[v1.RecursiveReadOnlyMode]():                   words("Disabled IfPossible Enabled On"),
	reflect.TypeFor[v1.URIScheme]():                               words("HTTP HTTPS http"),
	reflect.TypeFor[v1.PullPolicy]():                              words("Always Never IfNotPresent always"),
	reflect.TypeFor[v1.ResourceResizeRestartPolicy]():             words("NotRequired RestartContainer Maybe"),
	reflect.TypeFor[v1.PreemptionPolicy]():                        words("PreemptLowerPriority Never Always"),
	reflect.TypeFor[v1.TerminationMessagePolicy]():                words("File FallbackToLogsOnError Logs"),
	reflect.TypeFor[v1.Capability]():                              words("NET_ADMIN ALL SYS_ADMIN CAP_SYS_ADMIN SYS_TIME"),
	reflect.TypeFor[v1.Signal]():                                  words("SIGTERM SIGUSR1 SIGKILL SIGRTMIN+3 SIGNULL TERM SIGRTMAX"),
	reflect.TypeFor[v1.RestartPolicy]():                           words("Always OnFailure Never Sometimes"),
	reflect.TypeFor[v1.ContainerRestartPolicy]():                  words("Always OnFailure Never Sometimes"),
	reflect.TypeFor[v1.ContainerRestartRuleAction]():              words("Restart RestartAllContainers Stop"),
	reflect.TypeFor[v1.ContainerRestartRuleOnExitCodesOperator](): words("In NotIn Exists"),
	reflect.TypeFor[v1.DNSPolicy]():                               words("ClusterFirst ClusterFirstWithHostNet Default None Other"),
	reflect.TypeFor[v1.NodeSelectorOperator]():                    words("In NotIn Exists DoesNotExist Gt Lt Eq"),
	reflect.TypeFor[metav1.LabelSelectorOperator]():               words("In NotIn Exists DoesNotExist Gt"),
	reflect.TypeFor[v1.TaintEffect]():                             words("NoSchedule PreferNoSchedule NoExecute NoStart"),
	reflect.TypeFor[v1.TolerationOperator]():                      words("Exists Equal Lt Gt Like"),
	reflect.TypeFor[v1.OSName]():                                  words("linux windows plan9"),
	reflect.TypeFor[v1.UnsatisfiableConstraintAction]():           words("DoNotSchedule ScheduleAnyway Wait"),
	reflect.TypeFor[v1.NodeInclusionPolicy]():                     words("Ignore Honor ignore"),
	reflect.TypeFor[v1.PodFSGroupChangePolicy]():                  words("OnRootMismatch Always Never"),
	reflect.TypeFor[v1.SupplementalGroupsPolicy]():                words("Merge Strict None"),
	reflect.TypeFor[v1.PodSELinuxChangePolicy]():                  words("Recursive MountOption None"),
	reflect.TypeFor[v1.SeccompProfileType]():                      words("Unconfined RuntimeDefault Localhost Default"),
	reflect.TypeFor[v1.AppArmorProfileType]():                     words("Unconfined RuntimeDefault Localhost Default"),
	reflect.TypeFor[v1.ProcMountType]():                           words("Default Unmasked Masked"),
	reflect.TypeFor[v1.ResourceName]():                            resources,
	reflect.TypeFor[metav1.ManagedFieldsOperationType]():          words("Apply Update"),
}

// pools holds what fields of that name are told apart by; the last that fits counts.
var pools = []struct {
	suffix string
	values []string
}{
	{".env[].name", append(words("A B my.var MY-VAR 1A $x A=B"), "a b")},
	{".fieldPath", words("metadata.name metadata.namespace metadata.uid metadata.labels metadata.annotations metadata.labels['app'] metadata.annotations['example.com/a'] metadata.labels['!'] metadata.annotations['!'] " +
		"spec.nodeName spec.serviceAccountName status.hostIP status.hostIPs status.podIP status.podIPs status.phase spec.containers metadata.name['a'] metadata.labels['']")},
	{".resource", words("limits.cpu limits.memory limits.ephemeral-storage requests.cpu requests.memory requests.ephemeral-storage limits.hugepages-2Mi requests.hugepages-2Mi requests.hugepages- cpu limits.storage limits.example.com/gpu")},
	{".apiVersion", words("v1 v2 apps/v1")},
	{".image", words("a a:1 a:latest a/b@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa localhost:5000/a localhost:5000/a:latest A:1 a: :latest")},
	{".reference", words("a a:1 a:latest A/b localhost:5000/a")},
	{".mountPath", words("/dev/xvda /dev/y /a /a/b /b rel ../x /a:/b /etc/hosts / C:\\x")},
	{".devicePath", words("/dev/a /dev/b /dev/x /a/../b dev ..")},
	{".subPath", words("a a/b /a ../a a/../b a/..b . $(A)")},
	{".subPathExpr", words("$(A) $(A)/b /$(A) ../$(A) $$(A)")},
	{".path", words("a a/b /a ../a a/../b ..a a/..b / token")},
	{".key", words("a b metadata.name kubernetes.io/os example.com/k UPPER _x")},
	{".keyPath", words("key.pem a/key.pem ../key /key")},
	{".topologyKey", words("zone kubernetes.io/hostname bad/key/x -x")},
	{".localhostProfile", words("a.json a/b.json /a ../a a/../b")},
	{".sysctls[].name", words("kernel.shm_rmid_forced net.ipv4.ip_local_port_range net/ipv4/tcp_syncookies net.core.somaxconn kernel.msgmax kernel.sem fs.mqueue.a a.B a..b .a kernel/a.b-c")},
	{".nameservers[]", words("10.0.0.1 fd00::1 300.1.1.1 ::ffff:10.0.0.1 010.0.0.1 dns.example.com")},
	{".searches[]", words("example.com a.b. . _tcp.example.com A_b a..b")},
	{".ip", words("10.0.0.1 fd00::1 1.2.3 ::ffff:1.2.3.4 01.2.3.4")},
	{".hostIP", words("10.0.0.1 fd00::1 1.2.3 0.0.0.0 :: localhost ::ffff:1.2.3.4")},
	{".hostnames[]", words("a a.b A.b a_b -a")},
	{".hostname", words("a a.b A a_b -a")},
	{".hostnameOverride", words("a a.b A a_b -a")},
	{".conditionType", words("example.com/a a A/B a/b/c -")},
	{".finalizers[]", words("example.com/a a kubernetes orphan a/b/c")},
	{".audience", words("api")},
	{".keyType", words("RSA3072 RSA4096 ECDSAP256 ECDSAP384 ECDSAP521 ED25519 RSA")},
	{".signerName", words("example.com/s a kubernetes.io/x a/b/c example.com/s/t example.com/")},
	{".apiGroup", words("snapshot.storage.k8s.io example.com -")},
	{".kind", words("VolumeSnapshot PersistentVolumeClaim Thing")},
	{".monitors[]", words("a b")},
	{".iqn", words("iqn.2001-04.com.example:a eui.0123456789ABCDEF naa.0123456789abcdef iqn.x eui.1 a")},
	{".initiatorName", words("iqn.2001-04.com.example:a eui.0123456789ABCDEF naa.0123456789abcdef iqn.x eui.1 a")},
	{".registry", words("a:1 a:1,b:2 a a:1:2")},
	{".diskURI", words("https://a/b.vhd /subscriptions/a http://a")},
	{".directory", words("a ../a /a .")},
	{".seLinuxOptions.level", words("s0 s0:c1,c2")},
	{".runAsUserName", words("user domain\\user NT\\x a/b . ContainerAdministrator a.b\\c dom;ain\\u")},
	{".gmsaCredentialSpecName", words("a A_b a.b")},
	{".priorityClassName", words("high system-node-critical system-cluster-critical -a")},
	{".request", words("a one -a")},
	{".containerName", words("main one two nobody")},
	{".volumeName", words("empty data host v a-b -x")},
	{"metadata.name", words("a a.b A a_b main")},
	{"metadata.namespace", words("default a.b A")},
	{"metadata.labels{}", words("a example.com/a a/b/c -a")},
	{"metadata.annotations{}", words("a example.com/a seccomp.security.alpha.kubernetes.io/pod container.apparmor.security.beta.kubernetes.io/main container.apparmor.security.beta.kubernetes.io/nobody container.seccomp.security.alpha.kubernetes.io/main container.seccomp.security.alpha.kubernetes.io/other scheduler.alpha.kubernetes.io/tolerations " +
		"kubernetes.io/config.mirror controller.kubernetes.io/pod-deletion-cost security.alpha.kubernetes.io/sysctls pod.alpha.kubernetes.io/init-containers a/b/c UPPER/a")},
	{"metadata.annotations[]", words("a 1 -5 x runtime/default localhost/p unconfined localhost/../p localhost//p docker/default 99999999999 [] localhost/p.json localhost/mine [{\"operator\":\"Equal\"}] {")},
	{"userAnnotations{}", words("example.com/a example.com/b a other.com/x")},
}

// odds fit hardly anywhere.
var odds = []string{"", "", "a", "A", "a.b", "-a", "a-", "a_b", "a/b", "/a", "..", "../a", "a/../b", "a:b", " a", "a b", "a\nb", "é", "1", "0", "-1", "http",
	"example.com/a", "a..b", "$(A)", "10.0.0.1", "::1", "01.2.3.4", "kubernetes.io/x", "a,b", "a=b", "None", "*", ".", "\\", "\x00", "a\tb",
	strings.Repeat("a", 15), strings.Repeat("a", 16), strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a", 128), strings.Repeat("a", 129), strings.Repeat("a", 253), strings.Repeat("a", 254),
	strings.Repeat("a", 513), strings.Repeat("a", 4097), strings.Repeat("abc.", 70) + "a", strings.Repeat("a", 254) + ".b", strings.Repeat("a/", 64) + "b", strings.Repeat("a", 64) + "/b", strings.Repeat("a", 2049)}

var resources = words("cpu memory ephemeral-storage storage hugepages-2Mi hugepages-1Gi hugepages-3Mi hugepages- example.com/gpu kubernetes.io/foo foo requests.cpu requests.example.com/x example.com/ UPPER pods attachable-volumes-x cpu memory")

var quantities = words("0 1 2 100m 0.5m 1.5 1Ki 64Mi 1Gi 3Mi 2Mi 4Mi 1G 100u -1 -1Gi 1P 9E 500m 0.1 1e3 5Gi 1n 512")

var numbers = []int64{-1, 0, 1, 2, 3, 5, 10, 30, 60, 80, 99, 100, 101, 200, 254, 255, 256, 420, 511, 512, 599, 600, 3599, 3600, 7200, 86400, 86401, 7862400, 7862401, 8080, 65535, 65536,
	2000000000, 1000000001, 2147483647, -2147483648, 2147483648, 4294967295, 4294967296, 1 << 40, 1 << 62}

var ports = []intstr.IntOrString{intstr.FromInt32(80), intstr.FromInt32(8080), intstr.FromString("http"), intstr.FromString("dns"), intstr.FromInt32(0), intstr.FromInt32(-1), intstr.FromInt32(65535),
	intstr.FromInt32(65536), intstr.FromString(""), intstr.FromString("80"), intstr.FromString("nosuchport"), intstr.FromString("-a"), intstr.FromString("a--b"), intstr.FromString(strings.Repeat("a", 16)), intstr.FromString("HTTP")}

// unions are the types of which mostly one field is given.
var unions = map[reflect.Type]bool{
	reflect.TypeFor[v1.VolumeSource]():     true,
	reflect.TypeFor[v1.VolumeProjection](): true,
	reflect.TypeFor[v1.ProbeHandler]():     true,
	reflect.TypeFor[v1.LifecycleHandler](): true,
	reflect.TypeFor[v1.EnvVarSource]():     true,
	reflect.TypeFor[v1.EnvFromSource]():    true,
}

func words(s string) []string { return strings.Fields(s) }
