package runtime

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
)

// Labels and annotations of sandboxes and containers, as the kubelet writes them.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"

	annotationHash = "io.kubernetes.container.hash"
	// annotationImage is the image as the pod names it: runtimes forget UserSpecifiedImage
	// (containerd tells any name that the image has).
	annotationImage             = "io.berthd.container.image"
	annotationRestartCount      = "io.kubernetes.container.restartCount"
	annotationTerminationPath   = "io.kubernetes.container.terminationMessagePath"
	annotationTerminationPolicy = "io.kubernetes.container.terminationMessagePolicy"
	annotationPreStop           = "io.kubernetes.container.preStopHandler"
	annotationPorts             = "io.kubernetes.container.ports"
	annotationDeletionGrace     = "io.kubernetes.pod.deletionGracePeriod"
	annotationTerminationGrace  = "io.kubernetes.pod.terminationGracePeriod"
)

func podLabels(p *v1.Pod) map[string]string {
	return map[string]string{labelPodName: p.Name, labelPodNamespace: p.Namespace, labelPodUID: string(p.UID)}
}

// sandboxLabels are the pod's labels and who it is.
func sandboxLabels(p *v1.Pod) map[string]string {
	l := make(map[string]string, len(p.Labels)+3)
	maps.Copy(l, p.Labels)
	maps.Copy(l, podLabels(p))
	return l
}

// sandboxAnnotations are the pod's, with its source: after a restart the pod is
// only taken for removed when that source has been read.
func sandboxAnnotations(p *v1.Pod, source pod.Source) map[string]string {
	a := make(map[string]string, len(p.Annotations)+1)
	maps.Copy(a, p.Annotations)
	if source != "" {
		a[pod.AnnotationSource] = string(source)
	}
	return a
}

// containerLabels hold no labels of the pod: upstream does not copy them.
func containerLabels(p *v1.Pod, c *v1.Container) map[string]string {
	l := podLabels(p)
	l[labelContainerName] = c.Name
	return l
}

func containerAnnotations(p *v1.Pod, c *v1.Container, attempt uint32) map[string]string {
	a := map[string]string{
		annotationHash:              pod.SpecHash(c),
		annotationRestartCount:      strconv.FormatUint(uint64(attempt), 10),
		annotationTerminationPath:   c.TerminationMessagePath,
		annotationTerminationPolicy: string(c.TerminationMessagePolicy),
		annotationResources:         resourcesAnnotation(c),
		annotationImage:             c.Image,
	}
	if p.DeletionGracePeriodSeconds != nil {
		a[annotationDeletionGrace] = strconv.FormatInt(*p.DeletionGracePeriodSeconds, 10)
	}
	if g := p.Spec.TerminationGracePeriodSeconds; g != nil {
		a[annotationTerminationGrace] = strconv.FormatInt(*g, 10)
	}
	// Marshal of API types that were decoded from JSON cannot fail.
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		hook, _ := json.Marshal(c.Lifecycle.PreStop)
		a[annotationPreStop] = string(hook)
	}
	if len(c.Ports) > 0 {
		ports, _ := json.Marshal(c.Ports)
		a[annotationPorts] = string(ports)
	}
	return a
}

// rebuilt is the container as far as its annotations tell, for pods whose spec
// is lost: enough to stop it as it wanted to be stopped. Unreadable parts are
// left out, for they come from outside.
func rebuilt(name, image string, annotations map[string]string) v1.Container {
	c := v1.Container{
		Name: name, Image: image,
		TerminationMessagePath:   annotations[annotationTerminationPath],
		TerminationMessagePolicy: v1.TerminationMessagePolicy(annotations[annotationTerminationPolicy]),
	}
	if text, ok := annotations[annotationPreStop]; ok {
		var hook v1.LifecycleHandler
		if json.Unmarshal([]byte(text), &hook) == nil {
			c.Lifecycle = &v1.Lifecycle{PreStop: &hook}
		}
	}
	if text, ok := annotations[annotationPorts]; ok {
		_ = json.Unmarshal([]byte(text), &c.Ports)
	}
	return c
}

// ownLabels are the pod's own among a sandbox's labels.
func ownLabels(labels map[string]string) map[string]string {
	own := map[string]string{}
	for k, v := range labels {
		if !strings.HasPrefix(k, "io.kubernetes.pod.") {
			own[k] = v
		}
	}
	return own
}
