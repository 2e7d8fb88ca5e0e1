package fields

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"github.com/berthd/berth/test/node"
	"github.com/berthd/berth/test/support"
)

// Case is one file of testdata.
type Case struct {
	Name    string // the file's, without its extension
	Summary string // one sentence
	Covers  []string
	Flags   []string
	Config  []string // lines of its agent's configuration
	Alone   bool     // the case has an agent of its own
	Steps   []Step
	// Not says over which runtimes the case cannot hold, and why.
	Not map[node.Over]string
	// Manifests is pod.yaml, its placeholders not yet replaced.
	Manifests string
}

// Step is one command of a script.
type Step struct {
	// Of names the runtime that the step is of: berth, containerd, or any if empty.
	Of   string
	Line int
	Verb string
	Args string
	// Want is a regular expression; empty where any output will do.
	Want string
}

// Load reads the cases of dir in the order of their names. Errors say which
// file and line to mend; a case that covers a leaf which its manifests do not
// set is one.
func Load(dir string) ([]Case, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	var all []Case
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		c, err := parse(strings.TrimSuffix(filepath.Base(f), ".txt"), body)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		all = append(all, c)
	}
	return all, nil
}

// ofRuntime is a step of one runtime.
var ofRuntime = regexp.MustCompile(`^\[(berth|containerd)\] (.*)$`)

// holds says that the step is to be done over runtime o.
func (s Step) holds(o node.Over) bool {
	return s.Of == "" || (s.Of == "containerd") == (o == node.Containerd)
}

func parse(name string, body []byte) (Case, error) {
	c := Case{Name: name}
	archive := txtar.Parse(body)
	for _, f := range archive.Files {
		if f.Name != "pod.yaml" {
			return c, fmt.Errorf("a case has one file, pod.yaml, not %s", f.Name)
		}
		c.Manifests = string(f.Data)
	}
	for i, line := range strings.Split(string(archive.Comment), "\n") {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "#"); ok && c.Summary == "" {
			c.Summary = strings.TrimSpace(text)
		}
		if line == "" || line[0] == '#' {
			continue
		}
		s := Step{Line: i + 1}
		if m := ofRuntime.FindStringSubmatch(line); m != nil {
			s.Of, line = m[1], m[2]
		}
		s.Verb, s.Args, _ = strings.Cut(line, " ")
		switch s.Verb {
		case "covers":
			c.Covers = append(c.Covers, strings.Fields(s.Args)...)
			continue
		case "flags":
			c.Flags, c.Alone = append(c.Flags, strings.Fields(s.Args)...), true
			continue
		case "config":
			c.Config, c.Alone = append(c.Config, s.Args), true
			continue
		case "alone":
			c.Alone = true
			continue
		case "not":
			over, why, _ := strings.Cut(s.Args, " ")
			if over != string(node.Containerd) && over != string(node.Socket) || len(strings.Fields(why)) < 3 {
				return c, fmt.Errorf("line %d: want not containerd|socket and why", s.Line)
			}
			if c.Not == nil {
				c.Not = map[node.Over]string{}
			}
			c.Not[node.Over(over)] = why
			continue
		}
		if at := strings.LastIndex(line, "-> "); at >= 0 {
			s.Want = strings.TrimSpace(line[at+3:])
			if _, err := regexp.Compile(s.Want); err != nil {
				return c, fmt.Errorf("line %d: %w", s.Line, err)
			}
			s.Args = strings.TrimSpace(strings.TrimPrefix(line[:at], s.Verb))
		}
		if verbs[s.Verb] == nil {
			return c, fmt.Errorf("line %d: no command %q", s.Line, s.Verb)
		}
		c.Steps = append(c.Steps, s)
	}
	if c.Summary == "" {
		return c, fmt.Errorf("a case begins with a # line that says what it shows")
	}
	for _, s := range c.Steps {
		if s.Verb == "kill9" && !c.Alone {
			return c, fmt.Errorf("line %d: kill9 needs an agent alone", s.Line)
		}
	}
	return c, c.checkCovers()
}

// checkCovers sees that every leaf that the case claims is in its manifests.
func (c Case) checkCovers() error {
	if len(c.Covers) == 0 {
		return nil
	}
	set := map[string]bool{}
	for _, document := range strings.Split(c.Manifests, "\n---") {
		var pod struct {
			Kind string         `json:"kind"`
			Spec map[string]any `json:"spec"`
		}
		if err := yaml.Unmarshal([]byte(document), &pod); err != nil {
			return fmt.Errorf("pod.yaml: %w", err)
		}
		if pod.Kind == "Pod" {
			for _, leaf := range support.Set(pod.Spec) {
				set[leaf] = true
			}
		}
	}
	for _, leaf := range c.Covers {
		// Ephemeral containers cannot stand in a manifest: berth debug adds them.
		if !set[leaf] && !strings.HasPrefix(leaf, "ephemeralContainers[]") {
			return fmt.Errorf("it covers %s, which its pod.yaml does not set", leaf)
		}
	}
	return nil
}
