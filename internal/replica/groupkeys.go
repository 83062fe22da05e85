package replica

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Keys hands the epoch keys of groups over (R29), and what groups have to tell each other of forked feeds.
type Keys interface {
	// KeysFor returns what a device may have: one message per group with keys, of the newest epochs. It is asked once in each
	// session that has a conversation open, after PushKeys, and for each Export. Keys that a session has told already are not
	// repeated.
	KeysFor(tx *storage.Tx, p Peer) ([]*pb.GroupKeys, error)
	// BranchesFor returns what a device is asked for, one message per group, and those that answer it, which are told once.
	// It is asked in sessions alone, like KeysFor. What is wanted a session repeats after a while only.
	BranchesFor(tx *storage.Tx, p Peer) ([]*pb.GroupKeys, error)
	// TookKeys takes what a device that shares the group tells. The session reads nothing more until it returns; an
	// error that is ErrProtocol ends it.
	TookKeys(ctx context.Context, p Peer, k *pb.GroupKeys) error
	// Lacking says which devices lack what it takes to read what this device writes in a group. It must be cheap.
	Lacking(tx *storage.Tx, conv feed.ConversationID) (Lacking, error)
	// MailedKeys notes, in the transaction in which the mailbox's receipt is kept, that keys wait for a device until then.
	MailedKeys(tx *storage.Tx, p Peer, keys []*pb.GroupKeys, until time.Time) error
}

// Lacking is what devices are not known to hold of the epoch that this device last wrote under in a group. The zero value: they
// lack nothing, or this device has nothing to give. Its functions may be called inside the transaction alone.
type Lacking struct {
	// Mails says that it is for this device to mail the key also to those to whom no other mail goes.
	Mails bool
	// Key tells whether a device may have the key and is not known to hold it; acked is up to where it acknowledged the own chat
	// feed. nil: none does.
	Key func(p Peer, acked uint64) (bool, error)
	// Acts lists control entries of others upon which the epoch stands and that the device is not known to hold.
	Acts func(p Peer, acked uint64) ([]Span, error)
	// Until is when Key, of what it was asked so far, first answers otherwise by time alone: a mailbox keeps a key no longer. Zero:
	// that is not to come. nil: like zero.
	Until func() time.Time
}

// Keys come when a session begins, for each group, and when an epoch does. Each may cost its receiver a commit.
const (
	keysPause = time.Second
	keysBurst = 1024
	// maxGroupKeys bounds the keys of one message.
	maxGroupKeys = 16
	// maxWants bounds the entries that one message asks for.
	maxWants = 256
)

// wantsPause is after which time what is wanted is asked for again in a session: an answer may have got lost.
const wantsPause = 9 * time.Minute

// told is what a session said of a group: which keys, or what is wanted.
type told struct {
	conv  feed.ConversationID
	wants bool
}

// saying is how it said that last.
type saying struct {
	sum [32]byte
	at  time.Time
}

func newKeysLimiter() *rate.Limiter { return rate.NewLimiter(rate.Every(keysPause), keysBurst) }

// PushKeys asks Keys anew what those may have who share a conversation, in every session that has it open.
func (r *Replica) PushKeys(conv feed.ConversationID) {
	r.debts.mark(conv) // a key may be mailed now that could not before
	for _, s := range r.streams.having(conv) {
		s.mu.Lock()
		s.keysLocked()
		s.mu.Unlock()
	}
}

// PushKeysTo does so in the session with one device, if there is one.
func (r *Replica) PushKeysTo(device identity.DeviceID) {
	if s := r.streams.get(device); s != nil {
		s.mu.Lock()
		s.keysLocked()
		s.mu.Unlock()
	}
}

// keysLocked lets the writer ask Keys, unless nothing is open yet: then open will. Called with mu held.
func (s *session) keysLocked() {
	if s.r.cfg.Keys != nil && s.opened {
		s.keysDue = true
		s.poke()
	}
}

// keys writes what the other side may have and was not told in this session.
func (w *writer) keys() error {
	s := w.s
	s.mu.Lock()
	due := s.keysDue
	s.keysDue = false
	s.mu.Unlock()
	if !due {
		return nil
	}
	if err := s.stillListed(); err != nil {
		return err
	}
	var all []*pb.GroupKeys
	err := s.r.view(func(tx *storage.Tx) (err error) {
		if all, err = s.r.cfg.Keys.KeysFor(tx, s.peer); err != nil {
			return err
		}
		more, err := s.r.cfg.Keys.BranchesFor(tx, s.peer)
		all = append(slices.Clip(all), more...)
		return err
	})
	if err != nil { // what was said to be told before that is told
		s.r.log.Warn("asking for the keys of groups", "device", s.peer.Device.Short(), "error", err)
	}
	now := s.r.cfg.Now()
	for _, k := range all {
		if len(k.GetGroup()) != 32 || len(k.Keys)+len(k.Wants)+len(k.Forks)+len(k.Branches) == 0 {
			continue
		}
		raw, err := proto.Marshal(k)
		if err != nil || len(raw) > wire.MaxSyncFrame-16 {
			s.r.log.Warn("handing over the keys of a group", "size", len(raw), "error", err)
			continue
		}
		// Branches are told because they were asked for.
		if len(k.Forks)+len(k.Branches) == 0 {
			sum, about := sha256.Sum256(raw), told{feed.ConversationID(k.Group), len(k.Wants) > 0}
			if last := w.told[about]; last.sum == sum && !(about.wants && now.Sub(last.at) >= wantsPause) {
				continue
			}
			if w.told == nil {
				w.told = map[told]saying{}
			}
			w.told[about] = saying{sum, now}
		}
		if err := w.frame(&pb.Frame{Of: &pb.Frame_GroupKeys{GroupKeys: k}}); err != nil {
			return err
		}
	}
	return w.flush()
}

// handleKeys hands what the other side tells to Keys, if the group is one that both share.
func (s *session) handleKeys(ctx context.Context, k *pb.GroupKeys) error {
	if len(k.GetGroup()) != 32 || len(k.Keys) > maxGroupKeys || len(k.Wants) > maxWants || len(k.Forks) > 1 || len(k.Branches) > 1 {
		return fmt.Errorf("reading keys of a group: %w", ErrProtocol)
	}
	for _, one := range k.Keys {
		if len(one.GetEpoch()) != 32 || len(one.Key) != 32 {
			return fmt.Errorf("reading keys of a group: %w", ErrProtocol)
		}
	}
	for _, id := range k.Wants {
		if len(id) != 32 {
			return fmt.Errorf("reading what a group wants: %w", ErrProtocol)
		}
	}
	if s.r.cfg.Keys == nil {
		return s.tax()
	}
	open, err := s.shares(feed.ConversationID(k.Group))
	if err != nil {
		return err
	}
	if !open {
		return s.tax()
	}
	if !s.keyRate.Allow() {
		return fmt.Errorf("too many keys of groups: %w", ErrBusy)
	}
	err = s.r.cfg.Keys.TookKeys(ctx, s.peer, k)
	if errors.Is(err, ErrProtocol) {
		return fmt.Errorf("taking keys of a group: %w", err)
	}
	if err != nil {
		s.r.log.Warn("keeping keys of a group", "device", s.peer.Device.Short(), "error", err)
	}
	s.lastIn.Store(time.Now().UnixNano()) // the silence was ours
	return nil
}
