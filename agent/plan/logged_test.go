package plan

import (
	"testing"

	"github.com/berthd/berth/agent/pod"
)

// TestNextAttempt: an instance never gets a number that was used, whoever remembers it.
func TestNextAttempt(t *testing.T) {
	for what, tt := range map[string]struct {
		recorded, logged uint32
		all              []pod.Container
		want             uint32
	}{
		"first":                {want: 0},
		"recorded":             {recorded: 3, want: 3},
		"record lost":          {logged: 5, want: 5},
		"log cleared":          {recorded: 3, logged: 1, want: 3},
		"runtime knows more":   {recorded: 1, all: []pod.Container{{Attempt: 4, State: pod.Exited}}, want: 5},
		"never started":        {all: []pod.Container{{Attempt: 0, State: pod.Created}}, want: 0},
		"record, log, runtime": {recorded: 2, logged: 3, all: []pod.Container{{Attempt: 0, State: pod.Exited}}, want: 3},
	} {
		d := &decision{rec: pod.Record{Durable: pod.Durable{Restarts: map[pod.ContainerName]uint32{"c": tt.recorded}}}}
		d.Observed.Logged = map[pod.ContainerName]uint32{"c": tt.logged}
		if got := d.nextAttempt(&member{name: "c", all: tt.all}); got != tt.want {
			t.Errorf("%s: %d, want %d", what, got, tt.want)
		}
	}
}
