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
)

// getEvents is `berth get events` with its flags.
type getEvents struct {
	*app
	output output
	all    bool
	watch  bool
}

func getEventsCommand(a *app) *cobra.Command {
	g := &getEvents{app: a}
	cmd := &cobra.Command{
		Use:               "events [POD]",
		Aliases:           []string{"event", "ev"},
		Short:             "List what happened to pods, oldest first",
		Example:           "  berth get events -A\n  berth get events web -w",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pod := ""
			if len(args) > 0 {
				pod = a.key(args[0]).Name
			}
			return g.run(cmd.Context(), pod)
		},
	}
	g.output.register(cmd, "json", "yaml", "wide", "name")
	cmd.Flags().BoolVarP(&g.all, "all-namespaces", "A", false, "of all namespaces")
	cmd.Flags().BoolVarP(&g.watch, "watch", "w", false, "go on and show new ones")
	return cmd
}

func eventTime(e *v1.Event) time.Time {
	for _, t := range []time.Time{e.LastTimestamp.Time, e.EventTime.Time, e.FirstTimestamp.Time} {
		if !t.IsZero() {
			return t
		}
	}
	return e.CreationTimestamp.Time
}

func (g *getEvents) run(ctx context.Context, pod string) error {
	namespace := g.namespace
	if g.all {
		namespace = ""
	}
	if g.watch {
		return g.follow(ctx, namespace, pod)
	}
	list, err := g.client().Events(ctx, namespace, pod)
	if err != nil {
		return err
	}
	slices.SortStableFunc(list.Items, func(x, y v1.Event) int { return eventTime(&x).Compare(eventTime(&y)) })
	list.APIVersion, list.Kind = "v1", "List"
	if list.Items == nil {
		list.Items = []v1.Event{}
	}
	for i := range list.Items {
		list.Items[i].APIVersion, list.Items[i].Kind = "v1", "Event"
	}
	if done, err := g.output.object(g.Out, list); done {
		return err
	}
	if len(list.Items) == 0 && g.output != "name" {
		fmt.Fprintln(g.Err, "No events.")
		return nil
	}
	t := g.table()
	for i := range list.Items {
		g.add(t, &list.Items[i])
	}
	return t.flush()
}

func (g *getEvents) table() *table {
	t := &table{w: g.Out, head: []string{"LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"}}
	if g.output == "wide" {
		t.head = append(t.head, "COUNT")
	}
	if g.all {
		t.head = append([]string{"NAMESPACE"}, t.head...)
	}
	if g.output == "name" {
		t.head = nil
	}
	return t
}

func (g *getEvents) add(t *table, e *v1.Event) {
	if g.output == "name" {
		t.row("event/" + e.Name)
		return
	}
	cells := []string{age(eventTime(e), time.Now()), e.Type, e.Reason, strings.ToLower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name, strings.TrimSpace(e.Message)}
	if g.output == "wide" {
		cells = append(cells, fmt.Sprint(max(e.Count, 1)))
	}
	if g.all {
		cells = append([]string{e.Namespace}, cells...)
	}
	t.row(cells...)
}

func (g *getEvents) follow(ctx context.Context, namespace, pod string) error {
	t := g.table()
	return g.client().WatchEvents(ctx, namespace, pod, func(e v1.Event) error {
		e.APIVersion, e.Kind = "v1", "Event"
		if g.output == "json" {
			return json.NewEncoder(g.Out).Encode(e)
		}
		if done, err := g.output.object(g.Out, e); done {
			return err
		}
		g.add(t, &e)
		return t.flush()
	})
}
