package stream

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func dataFrame(stream uint32, fin bool, payload []byte) []byte {
	h := make([]byte, frameHeader, frameHeader+len(payload))
	binary.BigEndian.PutUint32(h, stream)
	binary.BigEndian.PutUint32(h[4:], uint32(len(payload)))
	if fin {
		h[4] = 1
	}
	return append(h, payload...)
}

// parse reads data frames of one stream back: their payload and how large they were.
func parse(t *testing.T, b []byte, stream uint32) (payload []byte, largest int, fins []int) {
	t.Helper()
	for i := 0; len(b) > 0; i++ {
		if got := binary.BigEndian.Uint32(b); got != stream {
			t.Fatalf("frame %d is of stream %d", i, got)
		}
		if b[4] != 0 {
			fins = append(fins, i)
		}
		n := int(binary.BigEndian.Uint32(b[4:]) & lengthMask)
		payload = append(payload, b[frameHeader:frameHeader+n]...)
		largest = max(largest, n)
		b = b[frameHeader+n:]
	}
	return payload, largest, fins
}

func TestFramesAreCut(t *testing.T) {
	for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "half": iotest.HalfReader, "last with error": iotest.DataErrReader} {
		var in bytes.Buffer
		var want []byte
		for _, n := range []int{0, 1, maxFrame - 1, maxFrame, maxFrame + 1, 5*maxFrame + 17} {
			p := make([]byte, n)
			rand.Read(p)
			want = append(want, p...)
			in.Write(dataFrame(3, n == maxFrame+1 || n == maxFrame, p))
		}
		out, err := io.ReadAll(&frames{src: wrap(&in)})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, largest, fins := parse(t, out, 3)
		if !bytes.Equal(got, want) || largest > maxFrame {
			t.Errorf("%s: %d bytes, want %d; largest frame %d", name, len(got), len(want), largest)
		}
		if len(fins) != 2 || fins[0] != 3 || fins[1] != 5 { // the last part alone says that it was the last
			t.Errorf("%s: ends at frames %v, want 3 and 5", name, fins)
		}
	}
}

func TestControlFramesPassOrAreRefused(t *testing.T) {
	control := func(n int) []byte {
		b := dataFrame(0, true, make([]byte, n))
		copy(b, []byte{controlBit, 3, 0, 1})
		return b
	}
	in := append(control(maxControl), dataFrame(1, false, []byte("x"))...)
	out, err := io.ReadAll(&frames{src: bytes.NewReader(in)})
	if err != nil || !bytes.Equal(out, in) {
		t.Errorf("%d of %d bytes, %v", len(out), len(in), err)
	}
	if _, err := io.ReadAll(&frames{src: bytes.NewReader(control(maxControl + 1))}); err == nil || !strings.Contains(err.Error(), "control frame") {
		t.Errorf("too large: %v", err)
	}
}
