package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"
)

// called says which plugin was called, for what: every failure begins with it.
type called struct{ plugin, verb, network string }

func verbOf(environ []string) string {
	for _, e := range environ {
		if c, ok := strings.CutPrefix(e, "CNI_COMMAND="); ok {
			return c
		}
	}
	return "?"
}

func networkOf(stdin []byte) string {
	var c struct {
		Name string `json:"name"`
	}
	_ = json.Unmarshal(stdin, &c) // VERSION's has no name, and ours are well-formed
	return c.Name
}

// error makes an Error of what a plugin did.
func (c called) error(code Code, format string, args ...any) *Error {
	where := fmt.Sprintf("plugin %s", c.plugin)
	if c.network != "" {
		where = fmt.Sprintf("network %q: plugin %s", c.network, c.plugin)
	}
	return &Error{code, c.verb, fmt.Errorf(where+" "+format, args...)}
}

func (c called) late(err error) *Error {
	if errors.Is(err, context.Canceled) {
		return c.error(Timeout, "was killed: its caller has given up (%w)", err)
	}
	return c.error(Timeout, "was killed: it did not answer in time (%w); see whether what it talks to (its daemon, the API server) runs", err)
}

func (c called) bad(what string) *Error {
	return c.error(BadAnswer, "%s: it is broken, or no CNI plugin: install it anew", what)
}

// checkAnswer looks at what a plugin wrote that ended well. Only ADD and VERSION
// are asked for something.
func (c called) checkAnswer(stdout []byte) error {
	if c.verb != "ADD" && c.verb != "VERSION" {
		return nil
	}
	stdout = bytes.TrimSpace(stdout)
	switch {
	case len(stdout) == 0:
		return c.bad("answered nothing")
	case stdout[0] != '{' || !json.Valid(stdout):
		return c.bad("answered something that is not a JSON object")
	}
	return nil
}

// failed makes a sentence of a plugin's failure: the error object on its
// standard output if it is one, else the end of its standard error.
func (c called) failed(err error, stdout, stderr []byte) error {
	if told, ok := toldError(stdout); ok {
		return c.told(told)
	}
	if errors.Is(err, syscall.ENOEXEC) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENOENT) {
		return c.error(Missing, "cannot be run: %w; install it for this machine's architecture, with what it needs to run", err)
	}
	last := strings.TrimSpace(string(stderr[max(0, len(stderr)-500):]))
	if last == "" {
		last = strings.TrimSpace(string(stdout[:min(len(stdout), 500)]))
	}
	if last == "" {
		last = "it said nothing"
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			return c.error(Internal, "crashed (%w): %s; see the kernel's log for a lack of memory, else install it anew", err, last)
		}
	}
	return c.error(Internal, "failed: %w: %s", err, last)
}

func toldError(stdout []byte) (types.Error, bool) {
	var told types.Error
	return told, json.Unmarshal(stdout, &told) == nil && told.Msg != ""
}

// told makes an Error of what a plugin says itself. The plugin's own words stay.
func (c called) told(e types.Error) *Error {
	msg := e.Msg
	if e.Details != "" {
		msg += "; " + e.Details
	}
	switch {
	case strings.Contains(msg, "no IP addresses available"):
		return c.error(Exhausted, "has no address left: %w; end pods that are no longer needed, or give the network a larger range", &toldBy{e.Code, msg})
	case e.Code == types.ErrTryAgainLater, e.Code == types.ErrPluginNotAvailable, e.Code == types.ErrLimitedConnectivity:
		return c.error(NotReady, "says: %w", &toldBy{e.Code, msg})
	case e.Code == types.ErrIncompatibleCNIVersion:
		return c.error(InvalidConf, "does not speak the configuration's cniVersion: %w; install newer plugins, or lower cniVersion", &toldBy{e.Code, msg})
	}
	return c.error(Internal, "says: %w", &toldBy{e.Code, msg})
}

// toldBy is a plugin's own error.
type toldBy struct {
	code uint
	msg  string
}

func (t *toldBy) Error() string { return t.msg }

// unspoken says that err is a plugin's answer to a verb that it does not know.
func unspoken(err error) bool {
	var t *toldBy
	return errors.As(err, &t) && t.code == types.ErrInvalidEnvironmentVariables
}

// mute says that err is of a plugin that never acted: it does not speak the
// configuration's version, or cannot be run at all.
func mute(err error) bool {
	var t *toldBy
	return errors.As(err, &t) && t.code == types.ErrIncompatibleCNIVersion || CodeOf(err) == Missing
}

// asError wraps what libcni returns about network, keeping our own errors whole.
func asError(op, network string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		if e.Op == "find" { // before any plugin was run
			return &Error{e.Code, op, fmt.Errorf("network %q: %w", network, e.Err)}
		}
		return e
	}
	if network != "" {
		err = fmt.Errorf("network %q: %w", network, err)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &Error{Timeout, op, err}
	case op == "ADD" && network != "":
		return &Error{BadAnswer, op, err} // libcni could not read what a plugin answered
	}
	return &Error{Internal, op, err}
}
