package feed

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"

	"hima/identity"
)

// Author makes the entries of one device. It keeps no state: where a feed stands is the caller's to know, and an entry
// counts only once it is durably stored (R1). It is safe for concurrent use if its source of randomness is.
type Author struct {
	account     identity.AccountID
	device      identity.DeviceID
	certificate []byte
	rand        io.Reader
}

// NewAuthor returns the author for a device; the certificate goes into the first entry of each feed (R5).
func NewAuthor(account identity.AccountID, device identity.DeviceID, cert identity.Certificate) Author {
	return Author{account: account, device: device, certificate: cert.Raw(), rand: rand.Reader}
}

// WithRand returns the author with another source for the salt of bodies, for vectors and tests.
func (a Author) WithRand(r io.Reader) Author {
	a.rand = r
	return a
}

// Group is what the headers of groups hold besides. The zero Group is that of every other conversation.
type Group struct {
	Parents []EntryID // of a control entry, in the order in which they are written
	Epoch   []byte    // the epoch act that a chat entry is written under
	Nonce   []byte    // 32 bytes: this is a genesis, its hash names the conversation
}

// Next makes the entry that follows the tip; the zero Tip begins a feed. The content is what the kind prescribes, as
// encoded bytes. A time outside the range of the format is moved to its nearest end: a wrong clock must not keep
// anybody from writing. The entry is not signed; see [SignRun].
func (a Author) Next(tip Tip, conv ConversationID, number Number, kind Kind, clock uint64, timeMS int64, content []byte) (Entry, error) {
	return a.NextInGroup(tip, conv, number, kind, clock, timeMS, content, Group{})
}

// NextInGroup is Next with what the header of a group holds besides. A genesis is written to the zero conversation, and
// is the first entry of a control feed.
func (a Author) NextInGroup(tip Tip, conv ConversationID, number Number, kind Kind, clock uint64, timeMS int64, content []byte, g Group) (Entry, error) {
	e := Entry{Header: Header{
		Conversation: conv, Number: number, Account: a.account, Device: a.device,
		Seq: tip.Seq + 1, Prev: tip.Hash, Clock: clock, TimeMS: min(max(timeMS, 0), MaxTimeMS), Kind: kind,
		Parents: g.Parents, Epoch: g.Epoch, Nonce: g.Nonce,
	}}
	if tip.Seq == 0 {
		e.Prev = EntryID{}
		e.Certificate = a.certificate
	} else if err := checkStep(tip, &e); err != nil {
		return Entry{}, fmt.Errorf("making entry: %w", err)
	}
	body, err := PadBody(a.rand, content)
	if err != nil {
		return Entry{}, fmt.Errorf("making entry: %w", err)
	}
	e.body = body
	e.BodyHash = sha256.Sum256(body)
	e.BodyLen = uint32(len(body))
	if err := e.Header.check(); err != nil {
		return Entry{}, fmt.Errorf("making entry: %w", err)
	}
	if len(g.Parents) > MaxParents || len(g.Epoch) > MaxEpoch || g.Nonce != nil && len(g.Nonce) != 32 {
		return Entry{}, fmt.Errorf("making entry: parents, epoch or nonce: %w", ErrMalformed)
	}
	e.header = e.Header.append(make([]byte, 0, 232+len(e.Certificate)+34*len(g.Parents)+len(g.Epoch)+len(g.Nonce)))
	if len(e.header) > MaxHeader {
		return Entry{}, fmt.Errorf("making entry: header of %d bytes: %w", len(e.header), ErrTooLarge)
	}
	e.ID = sha256.Sum256(e.header)
	if e.Nonce != nil {
		e.Conversation = ConversationID(e.ID)
	}
	return e, nil
}

// SignRun signs a run that ends with the given entry (R4). The signature vouches for everything before it in the feed.
func SignRun(key identity.DeviceKey, last Entry) []byte {
	return key.Sign(identity.DomainEntry, last.header)
}
