package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/cmd/internal/client"
)

// getPods is `berth get pods` with its flags.
type getPods struct {
	*app
	output output
	all    bool // namespaces
	watch  bool
}

func getPodsCommand(a *app) *cobra.Command {
	g := &getPods{app: a}
	cmd := &cobra.Command{
		Use:               "pods [NAME...]",
		Aliases:           []string{"pod", "po"},
		Short:             "List pods",
		Example:           "  berth get pods -A -o wide\n  berth get pods web -o yaml\n  berth get pods -w",
		ValidArgsFunction: a.completePods(-1),
		RunE:              func(cmd *cobra.Command, args []string) error { return g.run(cmd.Context(), args) },
	}
	g.output.register(cmd, "json", "yaml", "wide", "name")
	cmd.Flags().BoolVarP(&g.all, "all-namespaces", "A", false, "of all namespaces")
	cmd.Flags().BoolVarP(&g.watch, "watch", "w", false, "go on and show every change")
	return cmd
}

func (g *getPods) run(ctx context.Context, names []string) error {
	namespace := g.namespace
	if g.all {
		if len(names) > 0 {
			return fmt.Errorf("a pod is named by its name and one namespace: use -n NAMESPACE instead of -A")
		}
		namespace = ""
	}
	for i := range names {
		names[i] = g.key(names[i]).Name
	}
	if g.watch {
		return g.follow(ctx, namespace, names)
	}
	pods, err := g.find(ctx, namespace, names)
	if err != nil {
		return err
	}
	return g.print(pods, len(names) == 1, namespace)
}

func (g *getPods) find(ctx context.Context, namespace string, names []string) ([]v1.Pod, error) {
	if len(names) == 0 {
		list, err := g.client().Pods(ctx, namespace)
		slices.SortStableFunc(list.Items, func(x, y v1.Pod) int {
			return strings.Compare(x.Namespace+"/"+x.Name, y.Namespace+"/"+y.Name)
		})
		return list.Items, err
	}
	var pods []v1.Pod
	for _, name := range names {
		d, err := g.client().Pod(ctx, client.PodKey{Namespace: namespace, Name: name})
		if err != nil {
			return nil, err
		}
		pods = append(pods, d.Pod)
	}
	return pods, nil
}

// typed gives a pod the kind that the wire leaves out inside of lists.
func typed(p v1.Pod) v1.Pod {
	p.APIVersion, p.Kind = "v1", "Pod"
	return p
}

func (g *getPods) print(pods []v1.Pod, single bool, namespace string) error {
	list := v1.PodList{Items: make([]v1.Pod, 0, len(pods))}
	list.APIVersion, list.Kind = "v1", "List"
	for _, p := range pods {
		list.Items = append(list.Items, typed(p))
	}
	var v any = list
	if single {
		v = list.Items[0]
	}
	if done, err := g.output.object(g.Out, v); done {
		return err
	}
	if g.output == "name" {
		for i := range pods {
			fmt.Fprintln(g.Out, "pod/"+pods[i].Name)
		}
		return nil
	}
	if len(pods) == 0 {
		where := "in namespace " + namespace
		if g.all {
			where = "on this node"
		}
		fmt.Fprintf(g.Err, "No pods %s.\n", where)
		return nil
	}
	t := g.table()
	for i := range pods {
		t.row(g.cells(&pods[i], time.Now())...)
	}
	return t.flush()
}

func (g *getPods) table() *table {
	head := []string{"NAME", "READY", "STATUS", "RESTARTS", "AGE"}
	if g.all {
		head = append([]string{"NAMESPACE"}, head...)
	}
	if g.output == "wide" {
		head = append(head, "IP", "NODE")
	}
	return &table{w: g.Out, head: head}
}

func (g *getPods) cells(p *v1.Pod, now time.Time) []string {
	s := summarize(p)
	cells := []string{p.Name, fmt.Sprintf("%d/%d", s.ready, s.total), s.status, s.restartsText(now), age(created(p), now)}
	if g.all {
		cells = append([]string{p.Namespace}, cells...)
	}
	if g.output == "wide" {
		cells = append(cells, orNone(p.Status.PodIP), orNone(p.Spec.NodeName))
	}
	return cells
}

// follow shows the present pods as one table, then a row a change.
func (g *getPods) follow(ctx context.Context, namespace string, names []string) error {
	t, complete := g.table(), false
	return g.client().Watch(ctx, namespace, func(e client.WatchEvent) error {
		if e.Type == client.Bookmark {
			complete = true
			if g.output == "" || g.output == "wide" {
				return t.flush()
			}
			return nil
		}
		if len(names) > 0 && !slices.Contains(names, e.Pod.Name) {
			return nil
		}
		switch g.output {
		case "json":
			return json.NewEncoder(g.Out).Encode(typed(e.Pod))
		case "yaml":
			fmt.Fprintln(g.Out, "---")
			_, err := g.output.object(g.Out, typed(e.Pod))
			return err
		case "name":
			_, err := fmt.Fprintln(g.Out, "pod/"+e.Pod.Name)
			return err
		}
		t.row(g.cells(&e.Pod, time.Now())...)
		if !complete {
			return nil
		}
		return t.flush()
	})
}
