package kubelet

import (
	"encoding/json"
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// simple is a pod of one container that runs a shell script; more are further
// fields of the container, spec of the pod, each on a line of its own.
func simple(name, script, more, spec string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\nspec:\n  terminationGracePeriodSeconds: 2\n%s  containers:\n"+
		"  - name: c\n    image: %s\n    imagePullPolicy: Never\n    command: [sh, -c, %q]\n%s", name, name, indent(2, spec), workloadImage, script, indent(4, more))
}

func indent(n int, text string) string {
	if text == "" {
		return ""
	}
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n"+pad) + "\n"
}

// forever is a script that ends when it is told to.
const forever = "trap 'exit 0' TERM; echo up; while :; do sleep 1 & wait $!; done"

// statusText is what a pod's status says, for the message of a test that fails.
func statusText(p *v1.Pod) string {
	text := fmt.Sprintf("%s %s %s", p.Status.Phase, p.Status.Reason, p.Status.Message)
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		body, err := json.Marshal(c.State)
		if err != nil {
			continue // for a person to read: the rest says enough
		}
		text += fmt.Sprintf("; %s ready=%v restarts=%d %s", c.Name, c.Ready, c.RestartCount, body)
	}
	return text
}
