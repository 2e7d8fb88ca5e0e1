package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthd/berth/cmd/internal/client"
)

// logs is `berth logs` with its flags.
type logs struct {
	*app
	container                          string
	all, follow, previous, timestamped bool
	since                              time.Duration
	sinceTime                          string
	tail, limit                        int64
}

func logsCommand(a *app) *cobra.Command {
	l := &logs{app: a}
	cmd := &cobra.Command{
		Use:               "logs POD [CONTAINER]",
		Short:             "Print what a container wrote",
		Example:           "  berth logs web\n  berth logs -f web -c nginx --tail 20\n  berth logs web --previous\n  berth logs web --all-containers --since 10m",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.completePodThenContainer,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				if l.container != "" {
					return errors.New("the container is named twice: give CONTAINER or -c, not both")
				}
				l.container = args[1]
			}
			return l.run(cmd.Context(), a.key(args[0]))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&l.container, "container", "c", "", "the container (default: the pod's first)")
	f.BoolVar(&l.all, "all-containers", false, "of all containers, each line with the container's name before it")
	f.BoolVarP(&l.follow, "follow", "f", false, "go on as more is written")
	f.BoolVarP(&l.previous, "previous", "p", false, "of the instance before the last restart")
	f.BoolVar(&l.timestamped, "timestamps", false, "each line with its time")
	f.DurationVar(&l.since, "since", 0, "only what is younger than this, for example 5m")
	f.StringVar(&l.sinceTime, "since-time", "", "only what is younger than this time (RFC 3339)")
	f.Int64Var(&l.tail, "tail", -1, "only the last lines (-1: all)")
	f.Int64Var(&l.limit, "limit-bytes", 0, "at most this many bytes (0: all)")
	_ = cmd.RegisterFlagCompletionFunc("container", a.completeContainers) // the flag exists
	return cmd
}

func (l *logs) options() (v1.PodLogOptions, error) {
	o := v1.PodLogOptions{Follow: l.follow, Previous: l.previous, Timestamps: l.timestamped}
	if l.since != 0 && l.sinceTime != "" {
		return o, errors.New("give --since or --since-time, not both")
	}
	if l.since < 0 {
		return o, fmt.Errorf("--since %s: give a time that has passed, for example 5m", l.since)
	}
	if l.since > 0 {
		seconds := int64((l.since + time.Second - 1) / time.Second)
		o.SinceSeconds = &seconds
	}
	if l.sinceTime != "" {
		t, err := time.Parse(time.RFC3339Nano, l.sinceTime)
		if err != nil {
			return o, fmt.Errorf("--since-time %q: give a time like 2006-01-02T15:04:05Z", l.sinceTime)
		}
		o.SinceTime = &metav1.Time{Time: t}
	}
	if l.tail >= 0 {
		o.TailLines = &l.tail
	}
	if l.limit > 0 {
		o.LimitBytes = &l.limit
	}
	return o, nil
}

func (l *logs) run(ctx context.Context, key client.PodKey) error {
	o, err := l.options()
	if err != nil {
		return err
	}
	if l.all {
		if l.container != "" {
			return errors.New("give -c or --all-containers, not both")
		}
		return l.runAll(ctx, key, o)
	}
	container, err := l.pick(ctx, key, l.container)
	if err != nil {
		return err
	}
	return l.copy(ctx, key, container, o, l.Out)
}

func (l *logs) copy(ctx context.Context, key client.PodKey, container string, o v1.PodLogOptions, to io.Writer) error {
	r, err := l.client().Logs(ctx, key, container, o)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.Copy(to, r); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("the log broke off (did the agent end? see `berth version`): %w", err)
	}
	return nil
}

// runAll prints all containers' logs: one after the other, or mixed line by line when following.
func (l *logs) runAll(ctx context.Context, key client.PodKey, o v1.PodLogOptions) error {
	d, err := l.client().Pod(ctx, key)
	if err != nil {
		return err
	}
	names := containerNames(&d.Pod, true)
	failures := make([]error, len(names))
	var writing sync.Mutex
	var wait sync.WaitGroup
	for i, name := range names {
		one := func() {
			w := &prefixed{to: l.Out, lock: &writing, prefix: "[pod/" + key.Name + "/" + name + "] "}
			if err := l.copy(ctx, key, name, o, w); err != nil {
				failures[i] = fmt.Errorf("container %s: %w", name, err)
			}
			w.end()
		}
		if l.follow {
			wait.Go(one)
		} else {
			one()
		}
	}
	wait.Wait()
	return errors.Join(failures...)
}

// prefixed writes whole lines, each after the prefix.
type prefixed struct {
	to      io.Writer
	lock    *sync.Mutex
	prefix  string
	pending []byte
}

// lineLimit is where a line without an end is cut.
const lineLimit = 1 << 20

func (p *prefixed) Write(b []byte) (int, error) {
	p.pending = append(p.pending, b...)
	for {
		n, line, err := bufio.ScanLines(p.pending, len(p.pending) > lineLimit)
		if err != nil || n == 0 {
			return len(b), err
		}
		if err := p.line(line); err != nil {
			return 0, err
		}
		p.pending = p.pending[n:]
	}
}

func (p *prefixed) line(line []byte) error {
	p.lock.Lock()
	defer p.lock.Unlock()
	_, err := fmt.Fprintf(p.to, "%s%s\n", p.prefix, line)
	return err
}

func (p *prefixed) end() {
	if len(p.pending) > 0 {
		_ = p.line(p.pending) // standard output is closed: nobody reads
	}
}

// defaultContainer is kubectl's annotation.
const defaultContainer = "kubectl.kubernetes.io/default-container"

func containerNames(p *v1.Pod, inits bool) []string {
	var names []string
	if inits {
		for i := range p.Spec.InitContainers {
			names = append(names, p.Spec.InitContainers[i].Name)
		}
	}
	for i := range p.Spec.Containers {
		names = append(names, p.Spec.Containers[i].Name)
	}
	return names
}

// pick returns the container to talk to: the wanted one, else the annotation's,
// else the first. It says which if there was a choice.
func (a *app) pick(ctx context.Context, key client.PodKey, wanted string) (string, error) {
	if wanted != "" {
		return wanted, nil
	}
	d, err := a.client().Pod(ctx, key)
	if err != nil {
		return "", err
	}
	names := containerNames(&d.Pod, false)
	if len(names) == 0 {
		return "", fmt.Errorf("pod %s has no containers", key)
	}
	if name := d.Pod.Annotations[defaultContainer]; name != "" {
		return name, nil
	}
	if len(names) > 1 {
		fmt.Fprintf(a.Err, "Defaulted container %q out of: %s\n", names[0], strings.Join(names, ", "))
	}
	return names[0], nil
}
