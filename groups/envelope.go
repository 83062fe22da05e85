package groups

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
)

// An envelope is how a run travels where others than members carry it: gossip and the logs of mailboxes (R31).
//
//	version 1 | nonce 24 | author's device, sealed 48 | run, sealed
//
// Both boxes are XChaCha20-Poly1305 with the same nonce and different keys, and both are bound to group and epoch. The first
// key is everybody's, the second that of the author: whoever says to be somebody else has used another key.
const (
	envelopeVersion = 1
	envelopeDomain  = "hima/group-envelope/1\x00"
	nonceSize       = chacha20poly1305.NonceSizeX
	boxOverhead     = chacha20poly1305.Overhead
	envelopeHead    = 1 + nonceSize + 32 + boxOverhead

	// envelopeOverhead is how much longer an envelope is than its run.
	envelopeOverhead = envelopeHead + boxOverhead
	// maxEnvelope is the length of the longest.
	maxEnvelope = envelopeOverhead + feed.MaxWireRun
)

var (
	// ErrEnvelope: the bytes are no envelope of this group and epoch. Nobody is to blame: it may be of an epoch whose key is
	// not here.
	ErrEnvelope = errors.New("not an envelope of this group and epoch")
	// ErrContent: an envelope opened, so a member made it, and holds what no member of this version writes.
	ErrContent = errors.New("envelope with false content")
)

// envelopeData is the associated data of both boxes.
func envelopeData(group feed.ConversationID, epoch feed.EntryID) []byte {
	b := make([]byte, 0, len(envelopeDomain)+len(group)+len(epoch))
	b = append(b, envelopeDomain...)
	b = append(b, group[:]...)
	return append(b, epoch[:]...)
}

// sealEnvelope puts a run of a group into an envelope under the key of an epoch.
func sealEnvelope(key EpochKey, group feed.ConversationID, epoch feed.EntryID, author identity.DeviceID, run *pb.Run) ([]byte, error) {
	var nonce [nonceSize]byte
	rand.Read(nonce[:])
	return sealWith(nonce, key, group, epoch, author, run)
}

// sealWith is sealEnvelope with a given nonce, for the vectors.
func sealWith(nonce [nonceSize]byte, key EpochKey, group feed.ConversationID, epoch feed.EntryID, author identity.DeviceID, run *pb.Run) ([]byte, error) {
	if key.IsZero() {
		return nil, fmt.Errorf("sealing an envelope: no key: %w", ErrEnvelope)
	}
	size := proto.Size(run)
	if size > feed.MaxWireRun {
		return nil, fmt.Errorf("sealing an envelope: run of %d bytes: %w", size, feed.ErrTooLarge)
	}
	plain, err := (proto.MarshalOptions{Deterministic: true}).MarshalAppend(make([]byte, 0, size), run)
	if err != nil {
		return nil, fmt.Errorf("sealing an envelope: %w", err)
	}
	b := make([]byte, 0, envelopeOverhead+len(plain))
	b = append(b, envelopeVersion)
	b = append(b, nonce[:]...)
	data := envelopeData(group, epoch)
	b = box(key.derive(labelAuthor)).Seal(b, nonce[:], author[:], data)
	return box(key.derive(labelPayload, author[:]...)).Seal(b, nonce[:], plain, data), nil
}

// opener opens envelopes of one group and epoch. It keeps the keys that it derived, for the same few speak all the time, and
// every member opens every message before it is passed on.
type opener struct {
	key    EpochKey
	group  feed.ConversationID
	epoch  feed.EntryID
	data   []byte
	author cipher.AEAD

	mu      sync.Mutex
	payload map[identity.DeviceID]cipher.AEAD // guarded by mu; of those whose envelopes opened
}

// maxOpenerKeys bounds the keys that are kept: a member can name any device.
const maxOpenerKeys = 1024

func newOpener(key EpochKey, group feed.ConversationID, epoch feed.EntryID) *opener {
	o := &opener{key: key, group: group, epoch: epoch, data: envelopeData(group, epoch), payload: map[identity.DeviceID]cipher.AEAD{}}
	if !key.IsZero() {
		o.author = box(key.derive(labelAuthor))
	}
	return o
}

// of returns the cipher of an author's runs, and whether it was kept.
func (o *opener) of(author identity.DeviceID) (c cipher.AEAD, kept bool) {
	o.mu.Lock()
	c, kept = o.payload[author]
	o.mu.Unlock()
	if !kept {
		c = box(o.key.derive(labelPayload, author[:]...))
	}
	return c, kept
}

func (o *opener) keep(author identity.DeviceID, c cipher.AEAD) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.payload) >= maxOpenerKeys {
		clear(o.payload)
	}
	o.payload[author] = c
}

// open opens an envelope and decodes the run in it. Nothing of the run is checked but that it says to be of this group, of
// the device that the envelope names, and written under this epoch; chain, signature and membership are the caller's
// business.
func (o *opener) open(b []byte) (identity.DeviceID, *pb.Run, error) {
	if o.author == nil || len(b) < envelopeOverhead || len(b) > maxEnvelope || b[0] != envelopeVersion {
		return identity.DeviceID{}, nil, fmt.Errorf("opening %d bytes: %w", len(b), ErrEnvelope)
	}
	nonce := b[1 : 1+nonceSize]
	name, err := o.author.Open(nil, nonce, b[1+nonceSize:envelopeHead], o.data)
	if err != nil {
		return identity.DeviceID{}, nil, fmt.Errorf("opening the author: %w", ErrEnvelope)
	}
	author, err := identity.DeviceIDFromBytes(name)
	if err != nil {
		return identity.DeviceID{}, nil, fmt.Errorf("reading the author: %w: %w", err, ErrContent)
	}
	payload, kept := o.of(author)
	plain, err := payload.Open(nil, nonce, b[envelopeHead:], o.data)
	if err != nil {
		// Not ErrContent: the first box may have been taken from an envelope and put before something else by anybody.
		return identity.DeviceID{}, nil, fmt.Errorf("opening the run: %w", ErrEnvelope)
	}
	if !kept {
		o.keep(author, payload)
	}
	run := &pb.Run{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(plain, run); err != nil {
		return identity.DeviceID{}, nil, fmt.Errorf("decoding the run: %w: %w", err, ErrContent)
	}
	id, _, err := feed.Peek(run)
	if err != nil {
		return identity.DeviceID{}, nil, fmt.Errorf("reading the run: %w: %w", err, ErrContent)
	}
	if id.Conversation != o.group || id.Device != author {
		return identity.DeviceID{}, nil, fmt.Errorf("reading the run: of another feed: %w", ErrContent)
	}
	return author, run, nil
}

// box makes a cipher of a key. It cannot fail: the length is right by type.
func box(key [32]byte) cipher.AEAD {
	c, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		panic("groups: " + err.Error())
	}
	return c
}

// fitsEpoch tells whether all of a run may travel in envelopes of an epoch: chat entries only if they were written under it,
// or those who came later could not be kept from older ones (R30); control entries always.
func fitsEpoch(run feed.Run, epoch feed.EntryID) bool {
	for _, e := range run.Entries() {
		if e.Number == feed.Chat && string(e.Epoch) != string(epoch[:]) {
			return false
		}
	}
	return true
}
