package source

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// support says for each field of a type whether this node implements it: an
// empty string means yes, anything else is the sentence that refuses it. A type
// that is listed is listed whole: a field that is not in its table is refused,
// so that a new release of the API never adds one that is silently ignored (a
// test then says that the table must grow). A type that is not listed is
// implemented as a whole.
var support = map[reflect.Type]map[string]string{
	reflect.TypeFor[v1.PodSpec]():              podSpecFields,
	reflect.TypeFor[v1.Container]():            containerFields,
	reflect.TypeFor[v1.PodSecurityContext]():   podSecurityFields,
	reflect.TypeFor[v1.SecurityContext]():      securityFields,
	reflect.TypeFor[v1.VolumeSource]():         volumeFields,
	reflect.TypeFor[v1.VolumeProjection]():     yes("secret downwardAPI configMap", map[string]string{"serviceAccountToken": noServer("service account tokens"), "clusterTrustBundle": noServer("cluster trust bundles"), "podCertificate": noServer("pod certificates")}),
	reflect.TypeFor[v1.EnvVarSource]():         yes("fieldRef resourceFieldRef configMapKeyRef secretKeyRef", map[string]string{"fileKeyRef": notYet("a variable from a file of a volume", "configMapKeyRef or secretKeyRef")}),
	reflect.TypeFor[v1.LifecycleHandler]():     yes("exec httpGet sleep", map[string]string{"tcpSocket": "a tcpSocket hook is not supported, nor by the kubelet: use exec or httpGet"}),
	reflect.TypeFor[v1.Lifecycle]():            yes("postStart preStop", map[string]string{"stopSignal": notYet("a stop signal in the manifest", "STOPSIGNAL of the image")}),
	reflect.TypeFor[v1.VolumeMount]():          yes("name readOnly mountPath subPath mountPropagation", map[string]string{"subPathExpr": notYet("subPathExpr", "subPath"), "recursiveReadOnly": ""}),
	reflect.TypeFor[v1.ResourceRequirements](): yes("limits requests", map[string]string{"claims": noServer("resource claims")}),
	reflect.TypeFor[v1.Affinity]():             yes("nodeAffinity", map[string]string{"podAffinity": noScheduler("podAffinity"), "podAntiAffinity": noScheduler("podAntiAffinity")}),
}

var podSpecFields = yes("volumes initContainers containers restartPolicy terminationGracePeriodSeconds activeDeadlineSeconds dnsPolicy "+
	"nodeSelector nodeName hostNetwork hostPID hostIPC shareProcessNamespace securityContext imagePullSecrets hostname subdomain affinity "+
	"schedulerName tolerations hostAliases priorityClassName priority dnsConfig enableServiceLinks preemptionPolicy os "+
	"hostUsers automountServiceAccountToken setHostnameAsFQDN", // some values of these are refused below
	map[string]string{
		"ephemeralContainers":       "ephemeral containers are added to a running pod and cannot stand in a manifest: put the container into spec.containers",
		"serviceAccountName":        noServer("service accounts"),
		"serviceAccount":            noServer("service accounts"),
		"readinessGates":            "a readiness gate waits for a condition that only another program can set through an API server, and this node runs without one: remove it",
		"runtimeClassName":          notYet("a choice of runtime classes", "the runtime of the node"),
		"overhead":                  "overhead belongs to a runtime class, and this node has none: remove it",
		"topologySpreadConstraints": noScheduler("topologySpreadConstraints"),
		"schedulingGates":           noScheduler("schedulingGates"),
		"schedulingGroup":           noScheduler("schedulingGroup"),
		"resourceClaims":            noServer("resource claims"),
		"resources":                 notYet("resources of a whole pod", "resources of its containers"),
		"hostnameOverride":          notYet("hostnameOverride", "hostname"),
	})

var containerFields = yes("name image command args workingDir ports envFrom env resources resizePolicy restartPolicy restartPolicyRules "+
	"volumeMounts livenessProbe readinessProbe startupProbe lifecycle terminationMessagePath terminationMessagePolicy imagePullPolicy "+
	"securityContext stdin stdinOnce tty",
	map[string]string{"volumeDevices": "a volume device needs a persistent volume claim, and this node runs without an API server: remove it"})

var podSecurityFields = yes("runAsUser runAsGroup runAsNonRoot supplementalGroups supplementalGroupsPolicy fsGroup sysctls seccompProfile fsGroupChangePolicy",
	map[string]string{
		"seLinuxOptions":      notYet("choosing SELinux options", "the label the node gives"),
		"seLinuxChangePolicy": notYet("choosing SELinux options", "the label the node gives"),
		"windowsOptions":      "this is a Linux node: remove windowsOptions",
		"appArmorProfile":     notYet("choosing an AppArmor profile", "seccompProfile and capabilities"),
	})

var securityFields = yes("capabilities privileged runAsUser runAsGroup runAsNonRoot readOnlyRootFilesystem allowPrivilegeEscalation procMount seccompProfile",
	map[string]string{
		"seLinuxOptions":  notYet("choosing SELinux options", "the label the node gives"),
		"windowsOptions":  "this is a Linux node: remove windowsOptions",
		"appArmorProfile": notYet("choosing an AppArmor profile", "seccompProfile and capabilities"),
	})

var volumeFields = func() map[string]string {
	m := yes("hostPath emptyDir secret downwardAPI configMap projected", map[string]string{
		"persistentVolumeClaim": noServer("persistent volume claims"),
		"ephemeral":             noServer("persistent volume claims"),
		"gitRepo":               "gitRepo has been removed from Kubernetes: clone in an init container into an emptyDir",
		"image":                 notYet("a volume made from an image", "an init container that copies into an emptyDir"),
	})
	for _, name := range strings.Fields("gcePersistentDisk awsElasticBlockStore nfs iscsi glusterfs rbd flexVolume cinder cephfs flocker fc " +
		"azureFile vsphereVolume quobyte azureDisk photonPersistentDisk portworxVolume scaleIO storageos csi") {
		m[name] = notYet("a volume of type "+name, "a hostPath of where the host has it mounted")
	}
	return m
}()

func yes(names string, refused map[string]string) map[string]string {
	m := map[string]string{}
	for name, why := range refused {
		m[name] = why
	}
	for _, name := range strings.Fields(names) {
		m[name] = ""
	}
	return m
}

func noServer(what string) string {
	return what + " come from an API server, and this node runs without one: remove the field"
}

func noScheduler(what string) string {
	return what + " guides a scheduler that chooses among nodes, and this node runs without one: remove the field"
}

func notYet(what, instead string) string {
	return what + " is not implemented yet: use " + instead
}

// onlyValues refuses all but some values of a field that is otherwise supported.
var onlyValues = map[reflect.Type]map[string]struct {
	refuse any // this value
	why    string
}{
	reflect.TypeFor[v1.PodSpec](): {
		"hostUsers":                    {false, "a user namespace of the pod's own is not implemented yet: remove the field, or set it to true"},
		"automountServiceAccountToken": {true, noServer("service account tokens")},
		"setHostnameAsFQDN":            {true, notYet("setHostnameAsFQDN", "hostname")},
	},
	reflect.TypeFor[v1.SecurityContext](): {
		"procMount": {"Unmasked", "an unmasked /proc needs a user namespace of the pod's own, which is not implemented yet: remove the field"},
	},
}

// refusal returns why the field of type owner cannot be used here, "" if it can.
func refusal(owner reflect.Type, name string, value *node) string {
	table, listed := support[owner]
	if !listed || value.shape == scalar && value.value == nil || value.shape == list && len(value.items) == 0 {
		return "" // nothing is asked for
	}
	why, known := table[name]
	if !known {
		return fmt.Sprintf("the field %s is not implemented yet: remove it", name)
	}
	if why != "" {
		return why
	}
	if only, ok := onlyValues[owner][name]; ok && value.shape == scalar && same(value.value, only.refuse) {
		return only.why
	}
	return ""
}

func same(a, b any) bool {
	if n, ok := a.(json.Number); ok {
		a = string(n)
	}
	return a == b
}
