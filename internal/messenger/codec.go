package messenger

import (
	"encoding/binary"
	"errors"
)

// errRow says that a row of an own table does not decode.
var errRow = errors.New("stored row is damaged")

// reader takes fields off a stored row. After the first error all further fields are zero, so that rows are read without
// a check per field and judged once at the end.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.b, r.bad = nil, true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) fixed(dst []byte) {
	if len(r.b) < len(dst) {
		r.b, r.bad = nil, true
		return
	}
	copy(dst, r.b)
	r.b = r.b[len(dst):]
}

func (r *reader) text() string {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.b, r.bad = nil, true
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// done reports damage. Fields behind the known ones are allowed: a later version may have added them.
func (r *reader) done() error {
	if r.bad {
		return errRow
	}
	return nil
}

func putText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}
