package runtime

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// The service that containers find the API server by: its variables are set
// whatever enableServiceLinks says.
const (
	masterService   = "kubernetes"
	masterNamespace = "default"
)

// serviceEnv returns the variables that tell a pod of namespace about services:
// those of its own namespace if links, and always default/kubernetes, which a
// service of that name in the pod's namespace replaces. Services without an
// address of their own are left out. (kubelet: getServiceEnvVarMap)
func serviceEnv(services []*v1.Service, namespace string, links bool) *env {
	chosen := map[string]*v1.Service{}
	for _, s := range services {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		switch {
		case s.Namespace == masterNamespace && s.Name == masterService:
			if _, there := chosen[s.Name]; !there {
				chosen[s.Name] = s
			}
		case s.Namespace == namespace && links:
			chosen[s.Name] = s
		}
	}
	all := make([]*v1.Service, 0, len(chosen))
	for _, s := range chosen {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *v1.Service) int { return cmp.Compare(a.Name, b.Name) })
	e := &env{values: map[string]string{}}
	for _, s := range all {
		describeService(e, s)
	}
	return e
}

func describeService(e *env, s *v1.Service) {
	name, ip := variableName(s.Name), s.Spec.ClusterIP
	e.set(name+"_SERVICE_HOST", ip)
	e.set(name+"_SERVICE_PORT", strconv.Itoa(int(s.Spec.Ports[0].Port)))
	for _, p := range s.Spec.Ports {
		if p.Name != "" {
			e.set(name+"_SERVICE_PORT_"+variableName(p.Name), strconv.Itoa(int(p.Port)))
		}
	}
	for i, p := range s.Spec.Ports { // the form of Docker's links
		protocol := cmp.Or(string(p.Protocol), string(v1.ProtocolTCP))
		port := strconv.Itoa(int(p.Port))
		url := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			e.set(name+"_PORT", url)
		}
		prefix := name + "_PORT_" + port + "_" + strings.ToUpper(protocol)
		e.set(prefix, url)
		e.set(prefix+"_PROTO", strings.ToLower(protocol))
		e.set(prefix+"_PORT", port)
		e.set(prefix+"_ADDR", ip)
	}
}

func variableName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }
