package runtime

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/agent/pod"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// maxEnvFile bounds the file of a fileKeyRef: a kernel takes no more than
// 128 KiB for one variable, and comments need room too.
const maxEnvFile = 1 << 20

// fileKey is the value of a fileKeyRef; ok is false if it is optional and not
// there. An empty value counts as none, as it does for the kubelet. The file is
// written by containers: it is opened below the volume and nowhere else, and
// nothing of it gets into an error.
func (f facts) fileKey(ref *v1.FileKeySelector) (value string, ok bool, err error) {
	volume, mounted := f.volumes[ref.VolumeName]
	if !mounted || volume.HostPath == "" {
		return "", false, failAs(opConfig, pod.NotFound, fmt.Errorf("cannot find the volume %q for FileKeyRef", ref.VolumeName))
	}
	text, err := readBelow(volume.HostPath, ref.Path, maxEnvFile)
	if err == nil {
		value, ok, err = findKey(text, ref.Key)
	} else if errors.Is(err, fs.ErrNotExist) && yes(ref.Optional) {
		return "", false, nil
	}
	if err != nil {
		return "", false, failAs(opConfig, pod.Invalid, fmt.Errorf("couldn't parse env file %q of volume %q: %w", ref.Path, ref.VolumeName, err))
	}
	if !ok || value == "" {
		return "", false, invalidUnless(ref.Optional, fmt.Errorf("environment variable key %q not found in file %q", ref.Key, ref.Path))
	}
	return value, true, nil
}

func invalidUnless(optional *bool, err error) error {
	if yes(optional) {
		return nil
	}
	return failAs(opConfig, pod.Invalid, err)
}

// readBelow reads the regular file at path below root, at most limit bytes of
// it. Links are followed within root only; what is not a regular file is not opened.
func readBelow(root, path string, limit int64) (string, error) {
	if !filepath.IsLocal(path) {
		return "", errors.New("the path must be relative and stay within the volume")
	}
	dir, err := os.OpenRoot(root)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	if st, err := dir.Stat(path); err != nil {
		return "", err
	} else if !st.Mode().IsRegular() {
		return "", errors.New("it is not a regular file")
	}
	f, err := dir.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // it may have become a FIFO
	if err != nil {
		return "", err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return "", err
	} else if !st.Mode().IsRegular() {
		return "", errors.New("it is not a regular file")
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return "", err
	}
	if int64(len(text)) > limit {
		return "", fmt.Errorf("it has more than %d bytes", limit)
	}
	return string(text), nil
}

// findKey returns the value of the first line of an env file that sets key:
//
//	KEY='value'   # no space before =, single quotes, which may span lines; no escapes
//	KEY=          # nothing, or a space, right after =: empty
//
// Blank lines and lines that begin with # are skipped. What follows the line is
// not looked at. (KEP-3721, kubelet: util/env)
func findKey(text, key string) (value string, ok bool, err error) {
	for number := 1; text != ""; number++ {
		line, rest, _ := strings.Cut(text, "\n")
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || trimmed[0] == '#' {
			text = rest
			continue
		}
		name, after, assigns := strings.Cut(strings.TrimLeft(text, " \t"), "=")
		switch {
		case !assigns || strings.Contains(name, "\n"):
			return "", false, fmt.Errorf("line %d is not of the form KEY='value'", number)
		case name == "" || strings.ContainsAny(name, " \t"):
			return "", false, fmt.Errorf("line %d has a space or nothing before the =", number)
		}
		value, lines := "", 0
		if after == "" || strings.ContainsRune(" \t\r\n", rune(after[0])) {
			text = rest
		} else if value, text, err = quoted(after); err != nil {
			return "", false, fmt.Errorf("line %d: %w", number, err)
		} else {
			lines = strings.Count(value, "\n")
		}
		if name == key {
			return value, true, nil
		}
		number += lines
	}
	return "", false, nil
}

// quoted cuts a value in single quotes, and the end of its last line, off text.
func quoted(text string) (value, rest string, err error) {
	if text[0] != '\'' {
		return "", "", errors.New("the value is not in single quotes")
	}
	value, rest, closed := strings.Cut(text[1:], "'")
	if !closed {
		return "", "", errors.New("the closing quote is missing")
	}
	tail, rest, _ := strings.Cut(rest, "\n")
	if tail = strings.TrimSpace(tail); tail != "" && tail[0] != '#' {
		return "", "", errors.New("something other than a comment follows the closing quote")
	}
	return value, rest, nil
}
