package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/admission"
	"github.com/berthd/berth/cmd/internal/client"
)

func describeCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "describe pod NAME...",
		Short:   "Show everything about a pod",
		Example: "  berth describe pod web\n  berth describe pod -n kube-system dns",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use: "pod NAME...", Aliases: []string{"pods", "po"},
		Short:             "Show everything about a pod: spec, state, why, events",
		Example:           "  berth describe pod web",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completePods(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for i, arg := range args {
				if i > 0 {
					fmt.Fprintln(a.Out)
				}
				if err := a.describe(cmd.Context(), a.key(arg)); err != nil {
					return err
				}
			}
			return nil
		},
	})
	return cmd
}

func (a *app) describe(ctx context.Context, key client.PodKey) error {
	d, err := a.client().Pod(ctx, key)
	if err != nil {
		return err
	}
	events, err := a.client().Events(ctx, key.Namespace, key.Name)
	if err != nil {
		return err
	}
	w := &description{now: time.Now()}
	w.head(d)
	w.containers("Init Containers", d.Pod.Spec.InitContainers, d.Pod.Status.InitContainerStatuses)
	w.containers("Containers", d.Pod.Spec.Containers, d.Pod.Status.ContainerStatuses)
	added := make([]v1.Container, 0, len(d.Pod.Spec.EphemeralContainers))
	for _, c := range d.Pod.Spec.EphemeralContainers {
		added = append(added, v1.Container(c.EphemeralContainerCommon))
	}
	w.containers("Ephemeral Containers", added, d.Pod.Status.EphemeralContainerStatuses)
	w.conditions(d.Pod.Status.Conditions)
	w.volumes(d.Pod.Spec.Volumes)
	w.problems(d)
	d.Explanation.Pod = key.String()
	w.line(0, "Why", "")
	var why bytes.Buffer
	writeWhy(&why, d.Explanation, w.now, a.paint)
	w.Write([]byte("  " + strings.ReplaceAll(strings.TrimRight(why.String(), "\n"), "\n", "\n  ") + "\n"))
	w.events(events.Items)
	_, err = io.Copy(a.Out, &w.Buffer)
	return err
}

// description is written in memory, where nothing can fail.
type description struct {
	bytes.Buffer
	now time.Time
}

func (w *description) line(depth int, name, value string) {
	indent := strings.Repeat("  ", depth)
	if value == "" {
		fmt.Fprintf(w, "%s%s:\n", indent, name)
		return
	}
	fmt.Fprintf(w, "%s%-*s %s\n", indent, 18-2*depth, name+":", value)
}

// list writes one value a line, the first beside the name.
func (w *description) list(depth int, name string, values []string) {
	if len(values) == 0 {
		w.line(depth, name, "<none>")
		return
	}
	for i, v := range values {
		if i == 0 {
			w.line(depth, name, v)
		} else {
			fmt.Fprintf(w, "%19s%s\n", "", v)
		}
	}
}

func pairs(m map[string]string, between string) []string {
	var out []string
	for k, v := range m {
		out = append(out, k+between+v)
	}
	slices.Sort(out)
	return out
}

func (w *description) head(d client.PodDetail) {
	p := &d.Pod
	w.line(0, "Name", p.Name)
	w.line(0, "Namespace", p.Namespace)
	w.line(0, "UID", string(p.UID))
	w.line(0, "Manifest", orNone(d.Manifest))
	if p.Spec.Priority != nil {
		w.line(0, "Priority", fmt.Sprint(*p.Spec.Priority))
	}
	w.line(0, "Node", orNone(p.Spec.NodeName))
	if p.Status.StartTime != nil {
		w.line(0, "Start Time", relative(p.Status.StartTime.Time, w.now))
	}
	w.list(0, "Labels", pairs(p.Labels, "="))
	w.list(0, "Annotations", pairs(p.Annotations, ": "))
	w.line(0, "Status", summarize(p).status)
	if p.Status.Reason != "" {
		w.line(0, "Reason", p.Status.Reason)
	}
	if p.Status.Message != "" {
		w.line(0, "Message", p.Status.Message)
	}
	var ips []string
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	w.list(0, "IPs", ips)
	w.line(0, "QoS Class", orNone(string(p.Status.QOSClass)))
	for _, passedOver := range admission.Warnings(p, admission.Node{SELinux: selinux.GetEnabled()}) {
		w.line(0, "Note", passedOver.Message)
	}
	var doing []string
	for _, f := range d.InFlight {
		text := f.Op
		if f.Container != "" {
			text += " " + f.Container
		}
		if !f.Since.IsZero() {
			text += ", begun " + relative(f.Since, w.now)
		}
		doing = append(doing, text)
	}
	w.list(0, "In Flight", doing)
}

func (w *description) conditions(all []v1.PodCondition) {
	if len(all) == 0 {
		return
	}
	w.line(0, "Conditions", "")
	t := table{w: w, head: []string{"  Type", "Status", "Since", "Reason"}}
	for _, c := range all {
		t.row("  "+string(c.Type), string(c.Status), age(c.LastTransitionTime.Time, w.now), orNone(c.Reason))
	}
	_ = t.flush() // in memory
}

func (w *description) problems(d client.PodDetail) {
	if len(d.Problems) == 0 {
		return
	}
	w.line(0, "Problems", "")
	for _, p := range d.Problems {
		fmt.Fprintln(w, "  "+p.String())
	}
}

func (w *description) events(all []v1.Event) {
	if len(all) == 0 {
		w.line(0, "Events", "<none>")
		return
	}
	slices.SortStableFunc(all, func(x, y v1.Event) int { return eventTime(&x).Compare(eventTime(&y)) })
	w.line(0, "Events", "")
	t := table{w: w, head: []string{"  Type", "Reason", "Age", "Message"}}
	for i := range all {
		e := &all[i]
		when := age(eventTime(e), w.now)
		if e.Count > 1 {
			when += fmt.Sprintf(" (x%d over %s)", e.Count, age(e.FirstTimestamp.Time, w.now))
		}
		t.row("  "+e.Type, e.Reason, when, strings.TrimSpace(e.Message))
	}
	_ = t.flush() // in memory
}
