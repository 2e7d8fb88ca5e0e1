package stream

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	// maxFrame is the largest SPDY frame that is passed on. The SPDY library
	// queues up to 50 frames for each of five workers, each read to its end.
	maxFrame = 64 << 10
	// maxControl is the largest control frame taken: the headers of one stream.
	maxControl  = 64 << 10
	frameHeader = 8
	controlBit  = 0x80
	lengthMask  = 1<<24 - 1
)

// frames reads SPDY frames from src and cuts data frames larger than maxFrame
// into several: a client's 16 MiB frames would otherwise wait here by the
// hundred while the command they are for reads nothing.
type frames struct {
	src io.Reader

	header [frameHeader]byte // of the frame that is being passed on
	out    []byte            // of header, what has not been read yet
	now    uint32            // bytes of payload that follow out
	rest   uint32            // bytes of the same frame that get headers of their own
	flags  byte              // of the original frame, for its last part
}

func (f *frames) Read(p []byte) (int, error) {
	if len(f.out) == 0 && f.now == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	if len(f.out) > 0 {
		n := copy(p, f.out)
		f.out = f.out[n:]
		return n, nil
	}
	if uint32(len(p)) > f.now {
		p = p[:f.now]
	}
	n, err := f.src.Read(p)
	f.now -= uint32(n)
	return n, err
}

// next makes the next header, of a new frame or of another part of the last.
func (f *frames) next() error {
	if f.rest == 0 {
		if _, err := io.ReadFull(f.src, f.header[:]); err != nil {
			return err
		}
		f.flags = f.header[4]
		f.rest = binary.BigEndian.Uint32(f.header[4:]) & lengthMask
		if f.header[0]&controlBit != 0 {
			if f.rest > maxControl {
				return fmt.Errorf("a SPDY control frame of %d bytes: %d are allowed", f.rest, maxControl)
			}
			f.now, f.rest, f.out = f.rest, 0, f.header[:]
			return nil
		}
	}
	f.now = min(f.rest, maxFrame)
	f.rest -= f.now
	binary.BigEndian.PutUint32(f.header[4:], f.now)
	if f.rest == 0 { // "this was the last" belongs to the last part
		f.header[4] = f.flags
	}
	f.out = f.header[:]
	return nil
}
