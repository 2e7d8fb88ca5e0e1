package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/berthd/berth/cmd/internal/client"
)

func whyCommand(a *app) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:               "why POD",
		Short:             "Say in plain words where a pod stands: the cause, since when, and what is tried next and when, and what can be done",
		Example:           "  berth why web\n  berth why -n kube-system dns -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.client().Why(cmd.Context(), a.key(args[0]))
			if err != nil {
				return err
			}
			if done, err := out.object(a.Out, e); done {
				return err
			}
			if e.Pod == "" {
				e.Pod = a.key(args[0]).String()
			}
			writeWhy(a.Out, e, time.Now(), a.paint)
			return nil
		},
	}
	out.register(cmd, "json", "yaml")
	return cmd
}

// writeWhy renders an explanation for a person.
func writeWhy(w io.Writer, e client.Explanation, now time.Time, paint func(colour, text string) string) {
	state := paint(red, "not well")
	if e.Well {
		state = paint(green, "well")
	}
	head := "Pod " + e.Pod + " is " + state
	if e.Phase != "" {
		head += " (" + e.Phase + ")"
	}
	fmt.Fprintln(w, head+".")
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(w, "  %-10s %s\n", name, strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n             "))
		}
	}
	cause := e.Cause
	if e.Reason != "" && !strings.Contains(cause, e.Reason) {
		cause += " [" + e.Reason + "]"
	}
	line("Cause:", cause)
	line("Container:", e.Container)
	if !e.Since.IsZero() {
		line("Since:", relative(e.Since, now))
	}
	next := e.Next
	if !e.NextAt.IsZero() {
		next = strings.TrimSpace(strings.TrimSuffix(next, ".") + " " + relative(e.NextAt, now))
	}
	line("Next:", next)
	line("Do:", e.Advice)
	for _, p := range e.Problems {
		line("Manifest:", p.String())
	}
	for i, c := range e.Containers {
		name := ""
		if i == 0 {
			name = "Now:"
		}
		text := c.Name + " " + c.State
		if c.Detail != "" {
			text += ": " + c.Detail
		}
		line(name, text)
	}
}

// relative renders a time as a person says it: "3m ago (15:04:05)", "in 12s (15:04:05)".
func relative(t, now time.Time) string {
	clock := t.Local().Format("15:04:05")
	if now.Sub(t) > 20*time.Hour || t.Sub(now) > 20*time.Hour {
		clock = t.Local().Format("2006-01-02 15:04:05")
	}
	if t.After(now) {
		return fmt.Sprintf("in %s (%s)", duration.HumanDuration(t.Sub(now)), clock)
	}
	return fmt.Sprintf("%s ago (%s)", duration.HumanDuration(now.Sub(t)), clock)
}
