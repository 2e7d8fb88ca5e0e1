package fields

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/jsonpath"

	"github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/node"
	"github.com/berthd/berth/test/patience"
	"github.com/berthd/berth/test/registry"
)

// stepTime is how long a step waits for what it wants to see; package patience
// makes it longer on slow machines.
const stepTime = 60 * time.Second

// running is a case under way.
type running struct {
	t    *testing.T
	c    Case
	a    *node.Agent
	dir  string
	pod  string // the name of its pod
	step Step
	// registry is the one that the case has started; nil if it has none.
	registry *registry.Registry
	// home is the test that what the case starts lives as long as.
	home testing.TB
	// boot starts an agent for this case alone; nil once it has.
	boot func(flags []string) *node.Agent
	// over says that the case has been skipped or has failed.
	over bool
	// skipped gets the reason of a skip, if somebody wants to know it.
	skipped *string
}

// early are the commands that may come before the case's own agent is started.
var early = map[string]bool{"host": true, "tmpfs": true, "registry": true, "push": true, "tls": true, "fault": true, "hang": true}

// agent starts the case's own agent, if it is to have one and has not yet.
func (r *running) agent() {
	if r.boot == nil {
		return
	}
	flags := strings.Fields(r.fill(strings.Join(r.c.Flags, " ")))
	if len(r.c.Config) > 0 {
		path := filepath.Join(r.dir, "config.yaml")
		text := "apiVersion: berth.dev/v1alpha1\nkind: Configuration\n" + r.fill(strings.Join(r.c.Config, "\n")) + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			r.t.Fatal(err)
		}
		flags = append(flags, "--config", path)
	}
	r.a, r.boot = r.boot(flags), nil
}

// verbs are the commands of a script. Each returns its output, to be compared
// with what is wanted; an error is tried again until the step's patience ends.
var verbs map[string]func(*running) (string, error)

func init() {
	verbs = map[string]func(*running) (string, error){
		"need":        func(r *running) (string, error) { return "", r.need() },
		"image":       (*running).importImage,
		"registry":    (*running).startRegistry,
		"fault":       (*running).fault,
		"push":        (*running).push,
		"tls":         (*running).tls,
		"tmpfs":       (*running).tmpfs,
		"readonly":    (*running).readonly,
		"hang":        (*running).hang,
		"host":        func(r *running) (string, error) { return shell(exec.Command("sh", "-c", r.step.Args)) },
		"killmonitor": (*running).killmonitor,
		"place":       func(r *running) (string, error) { r.a.Place(r.c.Name+".yaml", r.manifests()); return "", nil },
		"refused":     (*running).refused,
		"ready":       func(r *running) (string, error) { return "", r.check(node.Ready) },
		"phase":       func(r *running) (string, error) { return "", r.check(node.Phase(v1.PodPhase(r.step.Args))) },
		"waiting":     (*running).waiting,
		"exec":        (*running).exec,
		"logs":        func(r *running) (string, error) { return r.a.Berth("logs", r.pod, "-c", r.step.Args) },
		"status":      (*running).status,
		"oci":         (*running).oci,
		"cgroup":      (*running).cgroup,
		"events":      func(r *running) (string, error) { return r.a.Berth("get", "events", r.pod) },
		"why":         func(r *running) (string, error) { return r.a.Berth("why", r.pod) },
		"berth":       func(r *running) (string, error) { return shell(r.shellBerth()) },
		"kill9":       func(r *running) (string, error) { r.a.Kill9(); r.a.Start(); return "", nil },
		"remove": func(r *running) (string, error) {
			r.a.Unplace(r.c.Name + ".yaml")
			r.a.WaitGone(r.pod, stepTime)
			return "", nil
		},
	}
	maps.Copy(verbs, told)
}

// once are the commands that are not repeated until they show what is wanted.
var once = map[string]bool{"need": true, "image": true, "registry": true, "push": true, "tls": true, "tmpfs": true, "readonly": true, "hang": true, "fault": true, "place": true, "kill9": true, "remove": true, "berth": true,
	"cri": true, "finally": true, "gone": true, "unplace": true}

// looks are the command lines that change nothing and may be repeated.
var looks = regexp.MustCompile(`^(why|get|describe|logs) `)

// run goes through the script.
func (r *running) run() {
	over := node.Chosen(r.t)
	for o, why := range r.c.Not {
		if o == over && r.skipped != nil {
			*r.skipped = node.Exempt(o, why)
		}
		node.NotOver(r.t, o, why)
	}
	for _, s := range r.c.Steps {
		if !s.holds(over) {
			continue
		}
		if !early[s.Verb] {
			r.agent()
		}
		s.Args = r.fill(s.Args)
		r.step = s
		want := regexp.MustCompile("(?s)" + r.fill(s.Want)) // it has been compiled once
		end := time.Now().Add(patience.For(stepTime))
		for {
			begun := time.Now()
			out, err := verbs[s.Verb](r)
			if err == nil && s.Want != "" && !want.MatchString(strings.TrimSpace(out)) {
				err = fmt.Errorf("the output does not match %q:\n%s", want, out)
			}
			if err == nil {
				break
			}
			if once[s.Verb] && !looks.MatchString(s.Args) || time.Now().After(end) {
				why, _ := r.a.Berth("why", r.pod)
				r.t.Fatalf("%s.txt:%d: %s %s: %v\n%s", r.c.Name, s.Line, s.Verb, s.Args, err, why)
			}
			time.Sleep(max(100*time.Millisecond, 2*time.Since(begun))) // looking is not to be all that the machine does
		}
	}
}

var placeholder = regexp.MustCompile(`\b(NAME|DIR|IMAGE|SERVER|ROOT|REGISTRY)\b`)

func (r *running) fill(text string) string {
	return placeholder.ReplaceAllStringFunc(text, func(word string) string {
		switch word {
		case "NAME":
			return r.pod
		case "DIR":
			return r.dir
		case "IMAGE":
			return node.Busybox
		case "SERVER":
			return serverImage
		case "ROOT":
			return r.a.Dir + "/root"
		}
		if r.registry == nil {
			r.t.Fatalf("%s.txt has no registry", r.c.Name)
		}
		return r.registry.Address
	})
}

func (r *running) manifests() string { return r.fill(r.c.Manifests) }

func shell(cmd *exec.Cmd) (string, error) {
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s%s", err, out.String(), stderr.String())
	}
	return out.String() + stderr.String(), nil
}

func (r *running) shellBerth() *exec.Cmd {
	script := fmt.Sprintf(`exec timeout %.0f "$0" --socket "$1" %s`, patience.For(stepTime).Seconds(), r.step.Args)
	return exec.Command("sh", "-c", script, r.a.Binary, r.a.Socket())
}

// importImage imports busybox with another configuration under another name.
func (r *running) importImage() (string, error) {
	ref, config, _ := strings.Cut(r.step.Args, " ")
	spec, err := image.BusyboxSpec(ref)
	if err != nil {
		return "", err
	}
	config, arch, _ := strings.Cut(config, " arch=")
	spec.Architecture = arch
	if config != "" {
		if err := json.Unmarshal([]byte(config), &spec.Config); err != nil {
			return "", err
		}
	}
	return "", importSpec(r.a, r.dir, spec)
}

func (r *running) refused() (string, error) {
	path := filepath.Join(r.dir, "refused.yaml")
	if err := os.WriteFile(path, []byte(r.manifests()), 0o600); err != nil {
		return "", err
	}
	out, err := r.a.Berth("run", "-f", path)
	if err == nil {
		return out, errors.New("it was accepted")
	}
	return err.Error(), nil
}

func (r *running) check(ok func(*v1.Pod) error) error {
	p, err := r.a.Pod(r.pod)
	if err != nil {
		return err
	}
	if err := ok(p); err != nil {
		status, _ := json.Marshal(p.Status)
		return fmt.Errorf("%w; its status: %s", err, status)
	}
	return nil
}

func (r *running) waiting() (message string, err error) {
	name, reason, _ := strings.Cut(r.step.Args, " ")
	return message, r.check(func(p *v1.Pod) error {
		for _, list := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
			for _, s := range list {
				if w := s.State.Waiting; s.Name == name && w != nil && w.Reason == reason {
					message = w.Message
					return nil
				}
			}
		}
		return fmt.Errorf("container %s does not wait for %s", name, reason)
	})
}

func (r *running) exec() (string, error) {
	name, command, _ := strings.Cut(r.step.Args, " ")
	out, err := r.a.Berth("exec", r.pod, "-c", name, "--", "sh", "-c", command)
	return out, err
}

// byPath evaluates a JSONPath, with or without its braces.
func byPath(path string, document []byte) (string, error) {
	var v any
	if err := json.Unmarshal(document, &v); err != nil {
		return "", err
	}
	if !strings.HasPrefix(path, "{") {
		path = "{" + path + "}"
	}
	j := jsonpath.New("status").AllowMissingKeys(true)
	if err := j.Parse(path); err != nil {
		return "", err
	}
	var out strings.Builder
	err := j.Execute(&out, v)
	return out.String(), err
}

func (r *running) status() (string, error) {
	p, err := r.a.Pod(r.pod)
	if err != nil {
		return "", err
	}
	document, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	return byPath(r.step.Args, document)
}

// container returns the ID of the running or newest instance of a container.
func (r *running) container(name string) (string, error) {
	p, err := r.a.Pod(r.pod)
	if err != nil {
		return "", err
	}
	for _, list := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, s := range list {
			if s.Name == name && s.ContainerID != "" {
				_, id, _ := strings.Cut(s.ContainerID, "://")
				return id, nil
			}
		}
	}
	return "", fmt.Errorf("container %s has no instance", name)
}

func (r *running) oci() (string, error) {
	name, path, _ := strings.Cut(r.step.Args, " ")
	id, err := r.container(name)
	if err != nil {
		return "", err
	}
	document, err := os.ReadFile(filepath.Join(r.a.Bundle(id), "config.json"))
	if err != nil {
		return "", err
	}
	return byPath(path, document)
}

// cgroup reads a file of the container's or, for ".", of its pod's cgroup.
func (r *running) cgroup() (string, error) {
	name, files, _ := strings.Cut(r.step.Args, " ")
	v1File, v2File, _ := strings.Cut(files, "|")
	file, root := v1File, ""
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		file, root = v2File, "/sys/fs/cgroup"
	} else {
		controller, _, _ := strings.Cut(v1File, ".")
		root = filepath.Join("/sys/fs/cgroup", controller)
	}
	p, err := r.a.Pod(r.pod)
	if err != nil {
		return "", err
	}
	want := string(p.UID)
	if name != "." {
		if want, err = r.container(name); err != nil {
			return "", err
		}
	}
	found, err := cgroupDir(root, filepath.Base(r.a.Dir), want)
	if err != nil {
		return "", err
	}
	// Where systemd made the group, crun puts the limits into one of its own below it.
	if inner := filepath.Join(found, "container"); name != "." && fileOr(filepath.Join(inner, file), "none") == "" {
		found = inner
	}
	out, err := os.ReadFile(filepath.Join(found, file))
	return string(out), err
}

// cgroupDir finds the directory of a pod's UID or a container's ID in a hierarchy,
// below the agent's own root: what it is called in both drivers.
func cgroupDir(hierarchy, root, id string) (found string, err error) {
	slice := strings.ReplaceAll(root, "-", "_") + ".slice"
	for _, top := range []string{slice, root} {
		err = filepath.WalkDir(filepath.Join(hierarchy, top), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() && (strings.Contains(d.Name(), id) || strings.Contains(d.Name(), strings.ReplaceAll(id, "-", "_"))) {
				found = path
				return filepath.SkipAll
			}
			return nil // groups go while we look
		})
		if err != nil || found != "" {
			return found, err
		}
	}
	return "", fmt.Errorf("no cgroup of %s below %s of %s or %s", id, hierarchy, root, slice)
}
