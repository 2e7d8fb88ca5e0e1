package source

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// RefusedField is a field of the pod API that a node by itself cannot serve:
// it needs an API server, a scheduler or another operating system. A manifest
// that gives it is refused, beyond what validation finds.
type RefusedField struct {
	// Owner is the struct that declares the field, Field its name in JSON.
	Owner reflect.Type
	Field string
	// Only is the one value that is refused, as encoding/json decodes it; nil: any value.
	Only any
	// Why is a sentence that says what to do instead.
	Why string
}

// RefusedFields lists all fields that are refused, sorted by type and name.
func RefusedFields() []RefusedField {
	var all []RefusedField
	for owner, fields := range refused {
		for name, r := range fields {
			all = append(all, RefusedField{Owner: owner, Field: name, Only: r.only, Why: r.why})
		}
	}
	slices.SortFunc(all, func(a, b RefusedField) int {
		return cmp.Or(strings.Compare(a.Owner.Name(), b.Owner.Name()), strings.Compare(a.Field, b.Field))
	})
	return all
}

// Refusal says whether, and why, a field cannot be used; onlyValue, unless nil,
// is the one value of it that is refused. A field below a refused one is not asked for.
func Refusal(owner reflect.Type, field string) (why string, onlyValue any, is bool) {
	r, is := refused[owner][field]
	return r.why, r.only, is
}

type refusal struct {
	why  string
	only any
}

// refused holds the refusals by the type that declares the field.
var refused = map[reflect.Type]map[string]refusal{
	reflect.TypeFor[v1.PodSpec](): {
		"ephemeralContainers":          {why: "ephemeral containers are added to a pod that runs and cannot stand in a manifest: use berth debug"},
		"serviceAccountName":           noServer("service accounts"),
		"serviceAccount":               noServer("service accounts"),
		"automountServiceAccountToken": {why: noServer("service account tokens").why, only: true},
		"resourceClaims":               noServer("resource claims"),
		"schedulingGates":              noScheduler("schedulingGates"),
		"schedulingGroup":              noScheduler("schedulingGroup"),
	},
	reflect.TypeFor[v1.PodAffinity]():              {requiredAffinity: noScheduler("a required podAffinity")},
	reflect.TypeFor[v1.PodAntiAffinity]():          {requiredAffinity: noScheduler("a required podAntiAffinity")},
	reflect.TypeFor[v1.TopologySpreadConstraint](): {"whenUnsatisfiable": {why: "a constraint that must hold guides a scheduler that chooses among nodes, and this node runs without one: use ScheduleAnyway or remove it", only: "DoNotSchedule"}},
	reflect.TypeFor[v1.ResourceRequirements]():     {"claims": noServer("resource claims")},
	reflect.TypeFor[v1.Container]():                {"volumeDevices": {why: "a volume device is made from a persistent volume claim, which comes from an API server, and this node runs without one: mount a hostPath of type BlockDevice instead"}},
	reflect.TypeFor[v1.LifecycleHandler]():         {"tcpSocket": {why: "a tcpSocket hook always fails, in the kubelet too: use exec or httpGet"}},
	reflect.TypeFor[v1.PodSecurityContext]():       {"windowsOptions": {why: "this is a Linux node: remove windowsOptions"}},
	reflect.TypeFor[v1.SecurityContext]():          {"windowsOptions": {why: "this is a Linux node: remove windowsOptions"}},
	reflect.TypeFor[v1.VolumeProjection](): {
		"serviceAccountToken": noServer("service account tokens"),
		"clusterTrustBundle":  noServer("cluster trust bundles"),
		"podCertificate":      noServer("pod certificates"),
	},
	reflect.TypeFor[v1.VolumeSource](): refusedVolumes(),
}

const requiredAffinity = "requiredDuringSchedulingIgnoredDuringExecution"

func noServer(what string) refusal {
	return refusal{why: what + " come from an API server, and this node runs without one: remove the field"}
}

func noScheduler(what string) refusal {
	return refusal{why: what + " guides a scheduler that chooses among nodes, and this node runs without one: remove the field"}
}

func refusedVolumes() map[string]refusal {
	m := map[string]refusal{
		"persistentVolumeClaim": noServer("persistent volume claims"),
		"ephemeral":             noServer("persistent volume claims"),
		"csi":                   {why: "a volume of a CSI driver needs the driver's CSIDriver object from an API server, and this node runs without one: use a hostPath of where the host has the storage mounted"},
		"gitRepo":               {why: "gitRepo has been removed from Kubernetes: clone in an init container into an emptyDir"},
	}
	for _, name := range strings.Fields("nfs iscsi fc flexVolume") {
		m[name] = refusal{why: "a volume of type " + name + " is not attached by a node by itself: mount it on the host and use a hostPath of where it is mounted"}
	}
	for _, name := range strings.Fields("gcePersistentDisk awsElasticBlockStore glusterfs rbd cinder cephfs flocker azureFile vsphereVolume quobyte " +
		"azureDisk photonPersistentDisk portworxVolume scaleIO storageos") {
		m[name] = refusal{why: "volumes of type " + name + " have been removed from Kubernetes or moved to a CSI driver: use a hostPath of where the host has the storage mounted"}
	}
	return m
}

// refusals reports the fields below n, of type t, that are refused.
func refusals(n *node, t reflect.Type, path string, report func(line int, path, message string)) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case n == nil:
	case t.Kind() == reflect.Slice:
		for i, item := range n.items {
			refusals(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i), report)
		}
	case t.Kind() == reflect.Struct && t.PkgPath() == reflect.TypeFor[v1.Pod]().PkgPath():
		known := jsonFields(t)
		for _, f := range n.fields {
			g, ok := known[f.name]
			if !ok {
				continue // the check against the type tells
			}
			at := join(path, f.name)
			if r, is := refused[g.owner][f.name]; is && r.of(f.value) {
				report(f.line, at, r.why)
				continue
			}
			refusals(f.value, g.typ, at, report)
		}
	}
}

// of says whether r refuses the value.
func (r refusal) of(value *node) bool {
	if r.only != nil {
		return value.shape == scalar && same(value.value, r.only)
	}
	// A null or empty value asks for nothing.
	return value.shape != list && value.value != "" && (value.shape == object || value.value != nil) || len(value.items) > 0
}

func same(a, b any) bool {
	if n, ok := a.(json.Number); ok {
		a = string(n)
	}
	return a == b
}
