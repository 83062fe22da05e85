package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"google.golang.org/protobuf/proto"
)

var (
	// ErrTooLarge is returned when a frame is longer than its type allows, in both directions. On reading, nothing was
	// allocated for the frame and the stream is of no further use.
	ErrTooLarge = errors.New("frame too large")

	// ErrMalformed is returned when a length prefix is not a minimal uvarint, or the message does not decode.
	ErrMalformed = errors.New("frame malformed")
)

// maxPrefix is the longest length prefix that is looked at. Five bytes hold 35 bits, more than any limit.
const maxPrefix = 5

// Read reads one frame of at most max bytes into m, replacing what m held. Fields that this version does not know are
// dropped. It returns io.EOF only when the stream ended before the first byte of a frame, and io.ErrUnexpectedEOF when
// it ended inside one. After any other error than io.EOF the position in the stream is undefined: close it.
func Read(r *bufio.Reader, max int, m proto.Message) error {
	n, err := readLength(r)
	if err != nil {
		return err
	}
	if n > uint64(max) {
		return fmt.Errorf("reading frame of %d bytes, limit %d: %w", n, max, ErrTooLarge)
	}
	size := int(n)
	// A frame that fits the reader's buffer is decoded in place: protobuf copies what it keeps.
	if size <= r.Size() {
		b, err := r.Peek(size)
		if err != nil {
			return fmt.Errorf("reading frame: %w", noEOF(err))
		}
		if err := decode(b, m); err != nil {
			return err
		}
		_, err = r.Discard(size)
		return err
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("reading frame: %w", noEOF(err))
	}
	return decode(b, m)
}

func decode(b []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("decoding frame: %w: %w", ErrMalformed, err)
	}
	return nil
}

// readLength reads the prefix. A number has one encoding only, so that no two frames differ just in their prefix.
func readLength(r *bufio.Reader) (uint64, error) {
	var n uint64
	for i := range maxPrefix {
		c, err := r.ReadByte()
		if err != nil {
			if i == 0 && err == io.EOF {
				return 0, io.EOF
			}
			return 0, fmt.Errorf("reading frame length: %w", noEOF(err))
		}
		n |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c == 0 && i > 0 {
				return 0, fmt.Errorf("reading frame length: not minimal: %w", ErrMalformed)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("reading frame length: %w", ErrTooLarge)
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Append appends the frame of m to b. It does not look at limits; [Write] does.
func Append(b []byte, m proto.Message) ([]byte, error) {
	size := proto.Size(m)
	b = binary.AppendUvarint(b, uint64(size))
	b, err := (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(b, m)
	if err != nil {
		return nil, fmt.Errorf("encoding frame: %w", err)
	}
	return b, nil
}

// Size returns the length of the frame that [Append] would make, prefix included.
func Size(m proto.Message) int {
	n := proto.Size(m)
	return n + (bits.Len(uint(n)|1)+6)/7
}

// Write writes m as one frame with one call of w.Write. A message of more than max bytes is refused with ErrTooLarge
// and nothing is written.
func Write(w io.Writer, max int, m proto.Message) error {
	size := proto.Size(m)
	if size > max {
		return fmt.Errorf("writing frame of %d bytes, limit %d: %w", size, max, ErrTooLarge)
	}
	b, err := Append(make([]byte, 0, size+maxPrefix), m)
	if err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("writing frame: %w", err)
	}
	return nil
}
