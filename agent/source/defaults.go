package source

import (
	"github.com/berthd/berth/agent/podspec"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// complete fills in what the API server would, and what a pod has on this node
// alone: the kind that a typed list may leave out, and a namespace. It is idempotent.
func complete(p *v1.Pod) {
	set(&p.APIVersion, "v1")
	set(&p.Kind, "Pod")
	set(&p.Namespace, metav1.NamespaceDefault)
	podspec.Default(p)
	// The API server reads a negative grace period as the shortest one.
	if g := p.Spec.TerminationGracePeriodSeconds; *g < 0 {
		*g = 1
	}
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// defaultSecret moves stringData into data, as the API server does on writing.
func defaultSecret(s *v1.Secret, namespace string) {
	s.Namespace = namespace
	set(&s.Type, v1.SecretTypeOpaque)
	for k, v := range s.StringData {
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		s.Data[k] = []byte(v)
	}
	s.StringData = nil
}

// clearServerFields drops what only an API server writes, so that the output of
// `kubectl get -o yaml` is a manifest too.
func clearServerFields(m *metav1.ObjectMeta) {
	m.ResourceVersion, m.Generation = "", 0
	m.CreationTimestamp = metav1.Time{}
	m.DeletionTimestamp, m.DeletionGracePeriodSeconds = nil, nil
	m.ManagedFields, m.OwnerReferences = nil, nil
}
