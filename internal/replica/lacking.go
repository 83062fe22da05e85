package replica

import (
	"slices"
	"sync"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// lacking keeps in which conversations somebody may lack this device's newest receipt. Like debts it is derived from
// what is stored, and computed anew for what changed.
type lacking struct {
	mu    sync.Mutex
	ready bool                         // all receipts were looked at once
	dirty map[feed.ConversationID]bool // to be computed anew
	who   map[feed.ConversationID]lackers
}

// lackers are who may lack the receipt of one conversation.
type lackers struct {
	lazy  bool
	peers []Peer
}

func (l *lacking) init() {
	l.dirty = map[feed.ConversationID]bool{}
	l.who = map[feed.ConversationID]lackers{}
}

func (l *lacking) mark(conv feed.ConversationID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dirty[conv] = true
}

// ReceiptsDue lists the devices of other accounts that may lack this device's newest receipt of a conversation in which
// their account wrote, groups aside. What a session carries needs no road beside it: of devices with a session nothing
// is said.
func (r *Replica) ReceiptsDue() ([]Peer, error) { return r.receiptsDue(false) }

// LazyReceiptsDue is ReceiptsDue for groups: these receipts are many, and can wait.
func (r *Replica) LazyReceiptsDue() ([]Peer, error) { return r.receiptsDue(true) }

func (r *Replica) receiptsDue(lazy bool) ([]Peer, error) {
	l := &r.lacking
	l.mu.Lock()
	defer l.mu.Unlock()
	err := r.view(func(tx *storage.Tx) error {
		if !l.ready {
			err := tx.Scan(storage.ScanOptions{Prefix: []byte(keyReceipt), KeysOnly: true}, func(k, _ []byte) (bool, error) {
				k = k[len(keyReceipt):]
				if len(k) >= 64 && identity.DeviceID(k[32:64]) == r.self {
					l.dirty[feed.ConversationID(k[:32])] = true
				}
				return true, nil
			})
			if err != nil {
				return err
			}
			l.ready = true
		}
		for conv := range l.dirty {
			who := lackers{lazy: r.cfg.Members.Lazy(tx, conv)}
			var err error
			if who.peers, err = r.lackingIn(tx, conv, who.lazy); err != nil {
				return err
			}
			delete(l.dirty, conv)
			if l.who[conv] = who; len(who.peers) == 0 {
				delete(l.who, conv)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	seen := map[identity.DeviceID]bool{}
	var all []Peer
	for _, who := range l.who {
		if who.lazy != lazy {
			continue
		}
		for _, p := range who.peers {
			if !seen[p.Device] && !r.Connected(p.Device) {
				seen[p.Device] = true
				all = append(all, p)
			}
		}
	}
	slices.SortFunc(all, func(a, b Peer) int { return slices.Compare(a.Device[:], b.Device[:]) })
	return all, nil
}

func (r *Replica) lackingIn(tx *storage.Tx, conv feed.ConversationID, lazy bool) ([]Peer, error) {
	made, err := r.receiptsMade(tx, conv)
	if err != nil || len(made) == 0 {
		return nil, err
	}
	readers, err := r.cfg.Members.Readers(tx, conv)
	if err != nil {
		return nil, err
	}
	now := r.cfg.Now()
	var who []Peer
	for _, account := range readers {
		var to identity.AccountID
		if lazy {
			to = account
		}
		seq, ok := made[to]
		if !ok || account == r.cfg.Account {
			continue
		}
		if rec, ok := r.cfg.Records.Record(account); ok && rec.Expired(now) {
			continue
		}
		for _, device := range r.cfg.Records.Devices(account) {
			r.debts.belongs(device, account)
			posted, err := loadPosted(tx, conv, device)
			if err != nil {
				return nil, err
			}
			if posted < seq {
				who = append(who, Peer{Account: account, Device: device})
			}
		}
	}
	return who, nil
}

// receiptsMade returns the numbers of this device's receipts of a conversation, by whom they are for.
func (r *Replica) receiptsMade(tx *storage.Tx, conv feed.ConversationID) (map[identity.AccountID]uint64, error) {
	made := map[identity.AccountID]uint64{}
	prefix := receiptKey(receiptName{conv: conv, device: r.self})
	err := tx.Scan(storage.ScanOptions{Prefix: prefix}, func(k, v []byte) (bool, error) {
		var to identity.AccountID
		copy(to[:], k[len(prefix):])
		rec, err := decodeReceipt(v)
		made[to] = rec.GetSeq()
		return err == nil, err
	})
	return made, err
}

// handed is what a session remembers of the receipts it wrote, to note at its end which of them arrived: nothing in the
// protocol says so, but what was written well before the last frame came in did.
type handed struct {
	postedReceipt
	at int64 // Unix nanoseconds
}

// arrivesWithin is how long before the last incoming frame a receipt must have been written to count as handed over.
const arrivesWithin = int64(2e9)

// noteHanded stores at the end of a session which receipts the other side has.
func (s *session) noteHanded() {
	last := s.lastIn.Load()
	s.mu.Lock()
	var list []postedReceipt
	for conv, h := range s.handed {
		if h.at+arrivesWithin <= last {
			list = append(list, h.postedReceipt)
		}
		delete(s.handed, conv)
	}
	s.mu.Unlock()
	if len(list) == 0 {
		return
	}
	s.submitSmall(func(tx *storage.Tx) error {
		for _, p := range list {
			if err := s.r.savePosted(tx, p, s.peer.Device); err != nil {
				return err
			}
		}
		return nil
	})
}
