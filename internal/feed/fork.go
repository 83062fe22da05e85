package feed

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire/pb"
)

// ForkProof is checked proof that a device wrote two different entries with one number (R3). It holds no bodies.
type ForkProof struct {
	a, b         Entry
	tail         []Entry // follow b
	leadA, leadB []Entry // come before a and b, as many; of control feeds
	signA, signB []byte
}

// NewForkProof makes a proof from two checked runs of one feed that differ. Runs end at different numbers and only
// their ends are signed, so the proof is taken at the end of the shorter one, and from the longer one comes the chain
// from there to its own signature. That always fits a frame.
func NewForkProof(a, b Run) (ForkProof, error) {
	if len(a.entries) == 0 || len(b.entries) == 0 || a.Feed() != b.Feed() || a.Account() != b.Account() {
		return ForkProof{}, fmt.Errorf("proving fork: two feeds: %w", ErrMalformed)
	}
	at, other := a.Last(), b.Last()
	if at.Seq > other.Seq || at.Seq == other.Seq && bytes.Compare(at.ID[:], other.ID[:]) > 0 {
		a, b, at = b, a, other
	}
	if b.First().Seq > at.Seq {
		return ForkProof{}, fmt.Errorf("proving fork: runs do not overlap: %w", ErrGap)
	}
	rest := b.entries[at.Seq-b.First().Seq:]
	if rest[0].ID == at.ID {
		return ForkProof{}, fmt.Errorf("proving fork: nothing differs: %w", ErrKnown)
	}
	p := ForkProof{a: at.WithoutBody(), b: rest[0].WithoutBody(), signA: a.signature, signB: b.signature}
	for _, e := range rest[1:] {
		p.tail = append(p.tail, e.WithoutBody())
	}
	if at.Number == Control {
		p.lead(a, b)
	}
	return p, nil
}

// lead adds what of both runs lies between the place where they part and the two entries of the proof, if there is room.
func (p *ForkProof) lead(a, b Run) {
	from := max(a.First().Seq, b.First().Seq)
	ea, eb := a.entries[from-a.First().Seq:], b.entries[from-b.First().Seq:]
	for ea[0].ID == eb[0].ID {
		ea, eb = ea[1:], eb[1:]
	}
	n := p.a.Seq - ea[0].Seq
	for i := range n {
		p.leadA, p.leadB = append(p.leadA, ea[i].WithoutBody()), append(p.leadB, eb[i].WithoutBody())
	}
	if proto.Size(p.PB()) > MaxForkProof {
		p.leadA, p.leadB = nil, nil
	}
}

// Parted returns the lowest number at which the proof shows two entries. It is sure if the branches part right there:
// then everybody who has both of them comes to the same number.
func (p ForkProof) Parted() (at uint64, sure bool) {
	a, b := p.a, p.b
	if len(p.leadA) > 0 {
		a, b = p.leadA[0], p.leadB[0]
	}
	return a.Seq, a.Prev == b.Prev
}

// CheckForkProof checks a proof from the network: size, shape, chain and both signatures.
func CheckForkProof(raw *pb.ForkProof) (ForkProof, error) {
	if raw == nil {
		return ForkProof{}, fmt.Errorf("reading fork proof: %w", ErrMalformed)
	}
	if len(raw.Tail) >= MaxRunEntries || proto.Size(raw) > MaxForkProof {
		return ForkProof{}, fmt.Errorf("reading fork proof: %w", ErrTooLarge)
	}
	p := ForkProof{signA: raw.SignatureA, signB: raw.SignatureB, tail: make([]Entry, len(raw.Tail))}
	if err := p.a.parse(raw.HeaderA, nil); err != nil {
		return ForkProof{}, fmt.Errorf("reading fork proof: %w", err)
	}
	if err := p.b.parse(raw.HeaderB, nil); err != nil {
		return ForkProof{}, fmt.Errorf("reading fork proof: %w", err)
	}
	if p.a.Feed() != p.b.Feed() || p.a.Account != p.b.Account || p.a.Seq != p.b.Seq || p.a.ID == p.b.ID {
		return ForkProof{}, fmt.Errorf("reading fork proof: nothing proved: %w", ErrMalformed)
	}
	if err := p.checkLead(raw); err != nil {
		return ForkProof{}, err
	}
	last := &p.b
	for i, h := range raw.Tail {
		if err := p.tail[i].parse(h, nil); err != nil {
			return ForkProof{}, fmt.Errorf("reading fork proof: %w", err)
		}
		if err := checkFollows(last, &p.tail[i]); err != nil {
			return ForkProof{}, fmt.Errorf("reading fork proof: %w", err)
		}
		last = &p.tail[i]
	}
	if !p.a.Device.Verify(identity.DomainEntry, p.a.header, p.signA) ||
		!p.b.Device.Verify(identity.DomainEntry, last.header, p.signB) {
		return ForkProof{}, fmt.Errorf("checking fork proof: %w", ErrBadSignature)
	}
	return p, nil
}

// checkLead reads the headers before the two of the proof. The first of them must differ, else they would show the fork
// where there is none.
func (p *ForkProof) checkLead(raw *pb.ForkProof) error {
	if len(raw.BeforeA) != len(raw.BeforeB) || len(raw.BeforeA) >= MaxRunEntries {
		return fmt.Errorf("reading fork proof: branches: %w", ErrMalformed)
	}
	read := func(headers [][]byte, end *Entry) ([]Entry, error) {
		entries := make([]Entry, len(headers))
		for i, h := range headers {
			if err := entries[i].parse(h, nil); err != nil {
				return nil, err
			}
			if i > 0 {
				if err := checkFollows(&entries[i-1], &entries[i]); err != nil {
					return nil, err
				}
			}
		}
		if n := len(entries); n > 0 {
			return entries, checkFollows(&entries[n-1], end)
		}
		return nil, nil
	}
	var err error
	if p.leadA, err = read(raw.BeforeA, &p.a); err == nil {
		p.leadB, err = read(raw.BeforeB, &p.b)
	}
	if err != nil {
		return fmt.Errorf("reading fork proof: %w", err)
	}
	if len(p.leadA) > 0 && p.leadA[0].ID == p.leadB[0].ID {
		return fmt.Errorf("reading fork proof: branches: %w", ErrMalformed)
	}
	return nil
}

// Feed returns the feed that forked.
func (p ForkProof) Feed() FeedID { return p.a.Feed() }

// Account returns the author by both headers. Whose device it is they do not prove.
func (p ForkProof) Account() identity.AccountID { return p.a.Account }

// Seq returns the number that two entries have. The branches may have parted before it.
func (p ForkProof) Seq() uint64 { return p.a.Seq }

// Entries returns the two entries, without bodies.
func (p ForkProof) Entries() (a, b Entry) { return p.a, p.b }

// PB returns the encoded form.
func (p ForkProof) PB() *pb.ForkProof {
	out := &pb.ForkProof{HeaderA: p.a.header, SignatureA: p.signA, HeaderB: p.b.header, SignatureB: p.signB}
	for i := range p.tail {
		out.Tail = append(out.Tail, p.tail[i].header)
	}
	for i := range p.leadA {
		out.BeforeA, out.BeforeB = append(out.BeforeA, p.leadA[i].header), append(out.BeforeB, p.leadB[i].header)
	}
	return out
}
