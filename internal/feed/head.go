package feed

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"hima/identity"
	"hima/internal/wire/pb"
)

// Head says what a device holds of one feed (R2): the numbers First to Last, the latter with the given hash. First is
// the floor: nothing below it is offered or asked for. A floor may stand right above Last; then nothing is held, but
// the end is known.
type Head struct {
	Number  Number
	Account identity.AccountID
	Device  identity.DeviceID
	First   uint64
	Last    uint64
	Hash    EntryID
}

// HeadFromPB checks a head from the network.
func HeadFromPB(raw *pb.Head) (Head, error) {
	h := Head{First: raw.GetFirst(), Last: raw.GetLast(), Number: Number(raw.GetFeed())}
	switch {
	case !h.Number.Valid(), !fill(h.Account[:], raw.GetAccount()), !fill(h.Device[:], raw.GetDevice()):
		return Head{}, fmt.Errorf("reading head: feed: %w", ErrMalformed)
	case h.Last > MaxSeq, h.First < 1, h.First > h.Last+1:
		return Head{}, fmt.Errorf("reading head: numbers %d to %d: %w", h.First, h.Last, ErrMalformed)
	case h.Last == 0 && len(raw.GetHash()) != 0, h.Last > 0 && !fill(h.Hash[:], raw.GetHash()):
		return Head{}, fmt.Errorf("reading head: hash: %w", ErrMalformed)
	}
	return h, nil
}

// PB returns the encoded form.
func (h Head) PB() *pb.Head {
	out := &pb.Head{Feed: uint32(h.Number), Account: h.Account[:], Device: h.Device[:], First: h.First, Last: h.Last}
	if h.Last > 0 {
		out.Hash = h.Hash[:]
	}
	return out
}

// compareHeads orders heads by account, device and feed.
func compareHeads(a, b Head) int {
	if c := bytes.Compare(a.Account[:], b.Account[:]); c != 0 {
		return c
	}
	if c := bytes.Compare(a.Device[:], b.Device[:]); c != 0 {
		return c
	}
	return cmp.Compare(a.Number, b.Number)
}

const domainHeads = "hima/heads/1\x00"

// Digest sums up the heads of one conversation, in whatever order they are given (R12). Two devices with equal digests
// hold the same and have nothing to say to each other. The floor is part of it, so that an author learns of a floor
// that was set above its entries (R16).
func Digest(heads []Head) [32]byte {
	sorted := slices.Clone(heads)
	slices.SortFunc(sorted, compareHeads)
	b := make([]byte, 0, len(domainHeads)+len(sorted)*(32+32+1+8+8+32))
	b = append(b, domainHeads...)
	for _, h := range sorted {
		b = append(b, h.Account[:]...)
		b = append(b, h.Device[:]...)
		b = append(b, byte(h.Number))
		b = binary.BigEndian.AppendUint64(b, h.First)
		b = binary.BigEndian.AppendUint64(b, h.Last)
		b = append(b, h.Hash[:]...)
	}
	return sha256.Sum256(b)
}
