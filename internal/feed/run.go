package feed

import (
	"fmt"

	"hima/identity"
	"hima/internal/wire/pb"
)

// Run is consecutive checked entries of one feed and the signature over the last of them.
type Run struct {
	entries   []Entry
	signature []byte
}

// CheckRun checks a run from the network against what is known of its feed, and returns the part of it that is new. The
// caller finds the tip by [Peek]; a wrong feed's tip shows as ErrFork or ErrGap.
//
// A run that begins after the end is answered with ErrGap before it is checked any further: use [CheckDetached]. One
// that holds nothing new gives ErrKnown, one that contradicts the tip ErrFork; both only after the signature was found
// good, so that nobody but the author can bring about a fork. Revocation and membership are not judged here, nor is
// anybody blamed: a run that fails says only that its bytes are worth nothing.
func CheckRun(prev Tip, raw *pb.Run) (Run, error) {
	_, first, err := Peek(raw)
	if err != nil {
		return Run{}, err
	}
	if first > prev.Seq+1 {
		return Run{}, fmt.Errorf("checking run from %d after %d: %w", first, prev.Seq, ErrGap)
	}
	run, err := CheckDetached(raw)
	if err != nil {
		return Run{}, err
	}
	return run.After(prev)
}

// CheckDetached checks a run by itself: limits, chain, clocks, bodies, and the one signature. It serves for runs ahead
// of a gap (R9). For a run that does not begin at 1 nothing ties the device to the account: the caller compares
// [Run.Account] with the device's certificate, and the run with its neighbours once the gap is filled.
func CheckDetached(raw *pb.Run) (Run, error) {
	run, err := CheckUnsigned(raw)
	if err == nil {
		err = run.Verify()
	}
	if err != nil {
		return Run{}, err
	}
	return run, nil
}

// CheckUnsigned is CheckDetached without the signature, for who has something to do while it is checked. Until
// [Run.Verify] says nil, nothing of the run may be kept, shown or answered.
func CheckUnsigned(raw *pb.Run) (Run, error) {
	if err := checkBounds(raw); err != nil {
		return Run{}, err
	}
	run := Run{entries: make([]Entry, len(raw.Entries)), signature: raw.Signature}
	for i, r := range raw.Entries {
		e := &run.entries[i]
		if err := e.parse(r.Header, r.Body); err != nil {
			return Run{}, err
		}
		if i == 0 {
			continue
		}
		if err := checkFollows(&run.entries[i-1], e); err != nil {
			return Run{}, err
		}
	}
	if err := checkStart(&run.entries[0]); err != nil {
		return Run{}, err
	}
	return run, nil
}

// Verify checks the signature of a run that CheckUnsigned returned.
func (r Run) Verify() error {
	last := &r.entries[len(r.entries)-1]
	if !last.Device.Verify(identity.DomainEntry, last.header, r.signature) {
		return fmt.Errorf("checking run up to %d: %w", last.Seq, ErrBadSignature)
	}
	return nil
}

// Assemble makes a run from entries of the own disk and the checked signature that is stored with the last of them.
func Assemble(entries []Entry, signature []byte) (Run, error) {
	if len(entries) == 0 || len(signature) != 64 {
		return Run{}, fmt.Errorf("assembling run: %w", ErrMalformed)
	}
	if room(entries) < len(entries) { // what others signed may go on after a removal
		return Run{}, fmt.Errorf("assembling run: %w", ErrTooLarge)
	}
	for i := range entries[1:] {
		if err := checkFollows(&entries[i], &entries[i+1]); err != nil {
			return Run{}, fmt.Errorf("assembling run: %w", err)
		}
	}
	return Run{entries: entries, signature: signature}, nil
}

// Peek returns the feed and the first number that a run claims, unverified: just enough to look up the tip.
func Peek(raw *pb.Run) (FeedID, uint64, error) {
	if raw == nil || len(raw.Entries) == 0 || raw.Entries[0] == nil {
		return FeedID{}, 0, fmt.Errorf("reading run: no entries: %w", ErrMalformed)
	}
	var e Entry
	if err := e.parse(raw.Entries[0].Header, nil); err != nil {
		return FeedID{}, 0, err
	}
	return e.Feed(), e.Seq, nil
}

// CheckHeaders reads the headers of consecutive entries of one feed that come without bodies and signature. Nothing says who wrote
// them: whoever takes one knows it by its hash.
func CheckHeaders(raw *pb.Run) ([]Entry, error) {
	if err := checkSizes(raw); err != nil {
		return nil, err
	}
	entries := make([]Entry, len(raw.Entries))
	for i, r := range raw.Entries {
		if err := entries[i].parse(r.Header, nil); err != nil {
			return nil, err
		}
		if i == 0 {
			continue
		}
		if err := checkFollows(&entries[i-1], &entries[i]); err != nil {
			return nil, err
		}
	}
	return entries, checkStart(&entries[0])
}

// checkBounds judges sizes before anything is parsed.
func checkBounds(raw *pb.Run) error {
	if err := checkSizes(raw); err != nil {
		return err
	}
	if len(raw.Signature) != 64 {
		return fmt.Errorf("reading run: signature of %d bytes: %w", len(raw.Signature), ErrMalformed)
	}
	return nil
}

func checkSizes(raw *pb.Run) error {
	if raw == nil || len(raw.Entries) == 0 {
		return fmt.Errorf("reading run: no entries: %w", ErrMalformed)
	}
	if len(raw.Entries) > MaxRunEntries {
		return fmt.Errorf("reading run: %d entries: %w", len(raw.Entries), ErrTooLarge)
	}
	size := signatureSize
	for _, e := range raw.Entries {
		if e == nil {
			return fmt.Errorf("reading run: empty entry: %w", ErrMalformed)
		}
		size += entrySize(len(e.Header), len(e.Body))
	}
	if size > MaxWireRun {
		return fmt.Errorf("reading run: %d bytes: %w", size, ErrTooLarge)
	}
	return nil
}

// checkFollows checks that b comes right after a in the same feed.
func checkFollows(a, b *Entry) error {
	if b.Conversation != a.Conversation || b.Number != a.Number || b.Device != a.Device {
		return fmt.Errorf("checking number %d: other feed: %w", b.Seq, ErrBrokenChain)
	}
	if b.Seq != a.Seq+1 || b.Prev != a.ID {
		return fmt.Errorf("checking number %d after %d: %w", b.Seq, a.Seq, ErrBrokenChain)
	}
	return checkStep(a.Tip(), b)
}

// checkStep checks what must hold between the tip and the entry after it, apart from the hash.
func checkStep(tip Tip, e *Entry) error {
	if e.Account != tip.Account {
		return fmt.Errorf("checking number %d: other account: %w", e.Seq, ErrCertificate)
	}
	// Subtracting keeps the comparison free of overflow.
	if tip.Clock != 0 && (e.Clock <= tip.Clock || e.Clock-tip.Clock > MaxClockStep) {
		return fmt.Errorf("checking number %d: clock %d after %d: %w", e.Seq, e.Clock, tip.Clock, ErrClock)
	}
	return nil
}

// checkStart checks what only a first entry has to bring.
func checkStart(e *Entry) error {
	if e.Seq != 1 {
		return nil
	}
	cert, err := identity.ParseCertificate(e.Certificate)
	if err != nil {
		return fmt.Errorf("checking first entry: %w: %w", err, ErrCertificate)
	}
	if cert.Account != e.Account || cert.Device != e.Device {
		return fmt.Errorf("checking first entry: certificate of another: %w", ErrCertificate)
	}
	return nil
}

// After compares a checked run with the tip and returns what is new, with the errors of [CheckRun]. It does no more than
// compare, so that it can stand inside a transaction while the costly part was done before.
func (r Run) After(prev Tip) (Run, error) {
	first, last := &r.entries[0], &r.entries[len(r.entries)-1]
	if first.Seq > prev.Seq+1 {
		return Run{}, fmt.Errorf("checking run from %d after %d: %w", first.Seq, prev.Seq, ErrGap)
	}
	if prev.Seq == 0 {
		return r, nil
	}
	if first.Seq == prev.Seq+1 {
		if first.Prev != prev.Hash {
			return Run{}, fmt.Errorf("checking run from %d: %w", first.Seq, ErrFork)
		}
		if err := checkStep(prev, first); err != nil {
			return Run{}, err
		}
		return r, nil
	}
	if last.Seq < prev.Seq {
		return Run{}, fmt.Errorf("checking run up to %d: %w", last.Seq, ErrKnown)
	}
	rest := r.entries[prev.Seq-first.Seq:]
	if rest[0].ID != prev.Hash {
		return Run{}, fmt.Errorf("checking number %d: %w", prev.Seq, ErrFork)
	}
	if len(rest) == 1 {
		return Run{}, fmt.Errorf("checking run up to %d: %w", last.Seq, ErrKnown)
	}
	r.entries = rest[1:]
	return r, nil
}

// From returns the part of a run from a number on, for who may not have what is before it; false if nothing is left.
func (r Run) From(seq uint64) (Run, bool) {
	if first := r.entries[0].Seq; seq > first {
		if seq > r.Last().Seq {
			return Run{}, false
		}
		r.entries = r.entries[seq-first:]
	}
	return r, true
}

// PB returns the encoded form, which shares the bytes of the entries.
func (r Run) PB() *pb.Run {
	all := make([]pb.Entry, len(r.entries))
	out := &pb.Run{Entries: make([]*pb.Entry, len(r.entries)), Signature: r.signature}
	for i := range r.entries {
		all[i].Header, all[i].Body = r.entries[i].header, r.entries[i].body
		out.Entries[i] = &all[i]
	}
	return out
}

// Entries returns the entries in order. The slice must not be changed.
func (r Run) Entries() []Entry { return r.entries }

// Len returns how many entries there are.
func (r Run) Len() int { return len(r.entries) }

// Signature returns the checked signature of the last header. It must not be changed.
func (r Run) Signature() []byte { return r.signature }

// First returns the first entry.
func (r Run) First() Entry { return r.entries[0] }

// Last returns the last entry, the one that is signed.
func (r Run) Last() Entry { return r.entries[len(r.entries)-1] }

// Feed returns the feed that the run belongs to.
func (r Run) Feed() FeedID { return r.entries[0].Feed() }

// Account returns the author. It is certified by the run itself only if the run begins at 1; see [CheckDetached].
func (r Run) Account() identity.AccountID { return r.entries[0].Account }

// WireSize returns the encoded size.
func (r Run) WireSize() int {
	n := signatureSize
	for i := range r.entries {
		n += r.entries[i].WireSize()
	}
	return n
}
