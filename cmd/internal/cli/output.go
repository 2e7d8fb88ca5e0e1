package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"
)

// output is the value of -o.
type output string

func (o *output) register(cmd *cobra.Command, allowed ...string) {
	cmd.Flags().StringVarP((*string)(o), "output", "o", "", "output format: "+strings.Join(allowed, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if *o == "" {
			return nil
		}
		for _, f := range allowed {
			if string(*o) == f {
				return nil
			}
		}
		return fmt.Errorf("unknown output format %q: use one of %s", *o, strings.Join(allowed, ", "))
	}
}

// object prints v as JSON or YAML; false if the format is another.
func (o output) object(w io.Writer, v any) (bool, error) {
	switch o {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "    ")
		e.SetEscapeHTML(false)
		return true, e.Encode(v)
	case "yaml":
		body, err := yaml.Marshal(v)
		if err == nil {
			_, err = w.Write(body)
		}
		return true, err
	}
	return false, nil
}

// table prints rows below their headings as kubectl does. Rows that come later
// keep to the widths of those before.
type table struct {
	w      io.Writer
	head   []string
	rows   [][]string
	widths []int
	begun  bool
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// flush prints the rows added since the last flush.
func (t *table) flush() error {
	rows := t.rows
	if !t.begun && len(t.head) > 0 {
		rows = append([][]string{t.head}, rows...)
	}
	t.begun, t.rows = true, nil
	for _, r := range rows {
		for i, cell := range r {
			if i == len(t.widths) {
				t.widths = append(t.widths, 0)
			}
			t.widths[i] = max(t.widths[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		for i, cell := range r {
			b.WriteString(cell)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", t.widths[i]-len([]rune(cell))+3))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(t.w, b.String())
	return err
}

// age renders how long ago t was: 5m12s.
func age(t, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t))
}

// size renders bytes: 4.26MB.
func size(n int64) string {
	const unit = 1000
	if n < unit {
		return fmt.Sprintf("%dB", n)
	}
	f, i := float64(n), 0
	for f >= unit && i < 4 {
		f, i = f/unit, i+1
	}
	return fmt.Sprintf("%.3g%cB", f, " kMGT"[i])
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}
