package feed

import (
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
)

// bodySizes are the lengths a padded body may have (R8). Few sizes, far apart, so that a length says little.
var bodySizes = [...]uint32{64, 256, 1 << 10, 4 << 10, MaxBody}

func validBodyLen(n uint32) bool {
	for _, s := range bodySizes {
		if n == s {
			return true
		}
	}
	return false
}

// PadBody makes a body from its content: 16 random bytes, the length as a varint, the content, zeros up to the next
// size. The random bytes keep an erased "yes" from being guessed by its hash.
func PadBody(rand io.Reader, content []byte) ([]byte, error) {
	if len(content) > MaxContent {
		return nil, fmt.Errorf("padding body: %d bytes: %w", len(content), ErrTooLarge)
	}
	need := bodySalt + protowire.SizeVarint(uint64(len(content))) + len(content)
	i := 0
	for int(bodySizes[i]) < need {
		i++
	}
	body := make([]byte, bodySizes[i])
	if _, err := io.ReadFull(rand, body[:bodySalt]); err != nil {
		return nil, fmt.Errorf("padding body: %w", err)
	}
	b := protowire.AppendVarint(body[:bodySalt], uint64(len(content)))
	copy(body[len(b):], content)
	return body, nil
}

// unpadBody returns the content of a body; it aliases the body. Nothing but zeros may follow the content, so that no
// second message hides there.
func unpadBody(body []byte) ([]byte, error) {
	if !validBodyLen(uint32(min(len(body), MaxBody+1))) {
		return nil, fmt.Errorf("reading body: %d bytes: %w", len(body), ErrMalformed)
	}
	rest := body[bodySalt:]
	l, n := uvarint(rest)
	if n == 0 || l > uint64(len(rest)-n) {
		return nil, fmt.Errorf("reading body: length: %w", ErrMalformed)
	}
	end := n + int(l)
	for _, c := range rest[end:] {
		if c != 0 {
			return nil, fmt.Errorf("reading body: padding: %w", ErrMalformed)
		}
	}
	return rest[n:end:end], nil
}
