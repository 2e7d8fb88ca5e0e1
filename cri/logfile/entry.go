package logfile

import (
	"bytes"
	"errors"
	"time"
)

// maxHead bounds the part of a line before its content.
const maxHead = 128

// head is what stands before a line's content.
type head struct {
	at      time.Time
	stderr  bool
	partial bool // the line goes on in the next entry of the same stream
}

var errFormat = errors.New("line is not in the CRI log format")

// parseHead splits a line (or its beginning) into head and content. Tags are
// separated by colons; the first is F or P.
func parseHead(line []byte) (h head, content []byte, err error) {
	stamp, rest, ok1 := bytes.Cut(line, []byte{' '})
	stream, rest, ok2 := bytes.Cut(rest, []byte{' '})
	tags, content, ok3 := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || !ok3 || len(line)-len(content) > maxHead {
		return h, nil, errFormat
	}
	if h.at, err = time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
		return h, nil, errFormat
	}
	switch string(stream) {
	case "stdout":
	case "stderr":
		h.stderr = true
	default:
		return h, nil, errFormat
	}
	tag, _, _ := bytes.Cut(tags, []byte{':'})
	h.partial = string(tag) == "P"
	return h, content, nil
}
