package groups

import (
	"math"
	"slices"
	"sync"
	"time"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Admit says how many entries of a run of a group may come in. Signatures and chains are checked already. What is refused
// with CODE_NOT_MEMBER may be taken when more acts are known, what is refused with CODE_FULL later.
func (g *Groups) Admit(tx *storage.Tx, in replica.Incoming) (take int, code pb.Code, err error) {
	id, all := in.Run.Feed(), in.Run.Len()
	state, known, err := g.state(tx, id.Conversation)
	if err != nil {
		return 0, 0, err
	}
	genesis := in.Run.First().Nonce != nil && feed.ConversationID(in.Run.First().ID) == id.Conversation
	switch {
	case !known && genesis && in.Peer.Account == g.self.Account:
		// Another own device is in it.
		return all, pb.Code_CODE_TAKEN, putRow(tx, groupKey(id.Conversation), groupRow{State: StateJoining, Began: g.now().UnixMilli()})
	case !known, state == StateNone, state == StateInvited:
		return 0, pb.Code_CODE_NOT_MEMBER, nil
	}
	gr, s, err := g.open(tx, id.Conversation, true)
	if err != nil {
		return 0, 0, err
	}
	gr.mu.Lock()
	if id.Number == feed.Control {
		take, code = g.admitActs(gr, s, in, genesis)
	} else {
		take, code = g.admitChat(gr, s, in, state)
	}
	if code == pb.Code_CODE_NOT_MEMBER {
		gr.refused = true
	}
	gr.mu.Unlock()
	if take == 0 || code != pb.Code_CODE_TAKEN {
		return take, code, nil
	}
	if crowded, err := g.crowded(tx, gr, in.Run); crowded || err != nil {
		return 0, pb.Code_CODE_NOT_MEMBER, err
	}
	return g.admitRate(tx, in, s)
}

// admitActs judges a control run. Acts may come before what they name, for a run that holds such acts may be the only one
// there is; but their author must have been let in by an act that is here, or be somebody upon whose acts others built, and
// little of one feed may wait. Called with gr.mu held.
func (g *Groups) admitActs(gr *group, s *snapshot, in replica.Incoming, genesis bool) (int, pb.Code) {
	entries, author := in.Run.Entries(), in.Run.Account()
	if genesis {
		return len(entries), pb.Code_CODE_TAKEN
	}
	needed := gr.needs(entries)
	if !gr.roster.LetIn(author) && !gr.takesStranger(in.Run, needed) {
		return 0, pb.Code_CODE_NOT_MEMBER
	}
	// A cut ends what somebody said, not what they did: an act beside a removal may overrule it, or be what others built upon, so
	// everybody must have it, and the fold says what it is worth. How much of that is taken is bounded, unless acts wait for it.
	take := g.limitNow(s, author, in.Run.Feed()).counting(entries)
	if beyond := len(entries) - take; beyond > 0 && !needed && gr.beyond(s, in.Run)+beyond > maxBeyond {
		return take, pb.Code_CODE_NOT_MEMBER
	}
	// A member fills their own share only, on however many devices, and cannot keep others from acting.
	quota := g.cfg.Limits.MemberActs
	if gr.roster.WasAdmin(author) {
		quota = g.cfg.Limits.AdminActs
	}
	last := entries[len(entries)-1].Seq
	if !needed && (last > uint64(quota) || last > fewActs && gr.fills(author, quota-len(entries))) {
		return 0, pb.Code_CODE_FULL
	}
	if len(gr.places)+len(entries) > g.cfg.Limits.Acts && !gr.roster.WasAdmin(author) && !needed {
		return 0, pb.Code_CODE_FULL
	}
	if gr.behind[in.Run.Feed().Device] >= g.cfg.Limits.Waiting || gr.roster.Waiting() >= roster.MaxWaiting-2*feed.MaxRunEntries {
		for _, p := range entries[0].Parents {
			if !gr.roster.Has(roster.ID(p)) {
				return 0, pb.Code_CODE_NOT_MEMBER
			}
		}
	}
	return len(entries), pb.Code_CODE_TAKEN
}

// maxBeyond is how many acts of one feed are taken beyond its cut.
const maxBeyond = 512

// Whoever was let in by an act on a branch of a forked feed (R3) was in for those who held it then, and is nobody to the others.
// Honest members may have built upon what such a stranger did, so it is taken where acts wait for it, void as it is. Of a feed
// whose first run is not yet what is named, the named one may follow; of those few are taken, for nobody vouches for them.
const (
	maxStrangers    = 16      // feeds of strangers of which nothing is named yet
	maxStrangerActs = 1 << 13 // of all strangers in a group
)

// takesStranger tells whether a control run of somebody who was let in by no act that is here may come in all the same. Called
// with mu held.
func (gr *group) takesStranger(run feed.Run, needed bool) bool {
	if gr.roster.Waiting() == 0 {
		return false
	}
	feeds, acts := map[identity.DeviceID]bool{run.Feed().Device: true}, run.Len()
	for _, p := range gr.places {
		if !gr.roster.LetIn(p.account) {
			feeds[p.device] = true
			acts++
		}
	}
	return acts <= maxStrangerActs && (needed || len(feeds) <= maxStrangers)
}

// needs tells whether acts wait for one of these. Called with mu held.
func (gr *group) needs(entries []feed.Entry) bool {
	return slices.ContainsFunc(entries, func(e feed.Entry) bool { return gr.roster.Lacks(roster.ID(e.ID)) })
}

// beyond is how many acts of a run's feed are held beyond its cut. Called with mu held.
func (gr *group) beyond(s *snapshot, run feed.Run) int {
	first, n := run.First().Seq, 0
	for seq := first - 1; seq > s.limit(run.Account(), run.Feed()).seq && seq > 0 && n <= maxBeyond; seq-- {
		n++
	}
	return n
}

// admitChat judges a chat run: its author is in, or was when it was written, and each entry is written under an epoch that
// is for its author. Called with gr.mu held.
func (g *Groups) admitChat(gr *group, s *snapshot, in replica.Incoming, state State) (int, pb.Code) {
	entries, author := in.Run.Entries(), in.Run.Account()
	if state != StateMember && state != StateDissolved || !gr.roster.LetIn(author) {
		return 0, pb.Code_CODE_NOT_MEMBER
	}
	limit := g.limitNow(s, author, in.Run.Feed())
	if limit.left && in.Peer.Account == author && !limit.named(entries) {
		// What others have of before is brought by others. Of the author is taken what the leaving proves to be from before: often nobody
		// else has what somebody said right before they went.
		return 0, pb.Code_CODE_NOT_MEMBER
	}
	take := limit.counting(entries)
	straddles := limit.straddledBy(entries, take)
	current, _ := s.view.Current()
	var last roster.ID
	for i := range take {
		if len(entries[i].Epoch) != len(last) {
			return i, pb.Code_CODE_BAD
		}
		epoch := roster.ID(entries[i].Epoch)
		if epoch == last {
			continue
		}
		if !gr.roster.Entitled(epoch, author) && (epoch != current.ID || s.view.Role(author) == roster.None) {
			return i, pb.Code_CODE_NOT_MEMBER
		}
		last = epoch
	}
	if take < len(entries) && !straddles {
		return take, pb.Code_CODE_NOT_MEMBER
	}
	return len(entries), pb.Code_CODE_TAKEN
}

// noCut: everything counts.
const noCut = uint64(feed.MaxSeq)

// limit says what counts of a feed (R25).
type limit struct {
	seq   uint64 // up to this number
	clock uint64 // and up to this clock
	whole uint64 // runs that begin before that are taken up to this number
	left  bool   // its author went by themself

	end roster.Cut // what their leaving names of it
}

func (l limit) counts(h *feed.Header) bool { return h.Seq <= l.seq && h.Clock <= l.clock }

// counting is how many entries, from the first on, count.
func (l limit) counting(entries []feed.Entry) int {
	for i := range entries {
		if !l.counts(&entries[i].Header) {
			return i
		}
	}
	return len(entries)
}

// straddledBy tells whether a run begins with what its author, who went, wrote before, and ends with what another of their devices,
// which had not heard of it yet, wrote afterwards. Nobody but its author can cut a run (R4), and some took it whole before they
// heard of the going, so it is taken whole, and what stands beyond is not shown, as it is not with them. Whoever removes somebody
// stays, and has a signature where they cut; who leaves may be met by nobody any more.
func (l limit) straddledBy(entries []feed.Entry, counting int) bool {
	return l.left && counting > 0 && entries[len(entries)-1].Seq <= l.whole
}

// named tells whether a run reaches what a leaving names: then all before it, as it is chained to that, was there at the time.
func (l limit) named(entries []feed.Entry) bool {
	return slices.ContainsFunc(entries, func(e feed.Entry) bool { return e.Seq == l.end.Seq && e.ID == l.end.Hash })
}

// limit says what counts of a feed of somebody: of those who are not in and of revoked devices what the cuts say.
func (s *snapshot) limit(author identity.AccountID, id feed.FeedID) limit {
	l := limit{seq: noCut, clock: math.MaxUint64, whole: noCut}
	if s.view.Role(author) == roster.None {
		l.end = find(s.view.Cuts(author), id)
		l.seq, l.whole = l.end.Seq, l.end.Seq
		if clock, left := s.left[author]; left {
			// The clock bounds what is named although nobody wrote it yet.
			l.clock, l.whole, l.left = clock, noCut, true
		}
	}
	if cuts, revoked := s.view.Revokes(author, id.Device); revoked {
		cut := find(cuts, id).Seq
		l.seq, l.whole = min(l.seq, cut), min(l.whole, cut)
	}
	return l
}

// limitNow is what may still come in of a feed. Of a device that a member's account revoked, while the group has not heard yet
// where it was cut, that is nothing new. Those who went said so when they went.
func (g *Groups) limitNow(s *snapshot, author identity.AccountID, id feed.FeedID) limit {
	l := s.limit(author, id)
	if _, cut := s.view.Revokes(author, id.Device); cut || s.view.Role(author) == roster.None {
		return l
	}
	if r, ok := g.cfg.Records(author); ok && r.Revokes(id.Device) {
		l.seq = 0
	}
	return l
}

// find returns the cut of a feed; one at 0 if there is none: nothing of it counts.
func find(cuts []roster.Cut, id feed.FeedID) roster.Cut {
	for _, c := range cuts {
		if c.Device == id.Device && c.Feed == uint32(id.Number) {
			return c
		}
	}
	return roster.Cut{}
}

// rates counts what each author writes, and what each peer brings of others, so that one member's flood is slowed at the
// first honest member it meets and does not reach the rest at once.
type rates struct {
	limits Limits
	mu     sync.Mutex
	at     map[rateKey]*bucket // guarded by mu; at most maxBuckets
}

const maxBuckets = 8192

// relayed is how much more than an author a peer may bring of others: catching up goes over few peers.
const relayed = 64

type rateKey struct {
	conv    ID
	account identity.AccountID
	control bool
	others  bool // what the account brings of others
	over    bool // who is told that a link is over

	handedOn bool // what is handed on to other admins

	branches bool // what the account asks for of forked feeds, or with others is asked for
}

type bucket struct {
	left float64
	size float64 // the largest burst so far
	at   time.Time
	told time.Time
}

// take asks for n entries. news is true when a refusal is to be told of.
func (r *rates) take(k rateKey, n int, rate, burst float64, now time.Time) (ok, news bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.at[k]
	if b == nil {
		if len(r.at) >= maxBuckets {
			for old := range r.at { // any: who is thrown out begins with a full one
				delete(r.at, old)
				break
			}
		}
		b = &bucket{left: burst, size: burst, at: now}
		r.at[k] = b
	}
	if burst > b.size {
		// The author became an admin, or for a newcomer, who takes an admin's first acts before knowing one, turned out to be one.
		b.left, b.size = b.left+burst-b.size, burst
	}
	if d := now.Sub(b.at).Seconds(); d > 0 {
		b.left, b.at = min(burst, b.left+d*rate), now
	}
	// A run that is larger than everything that may ever be left has to wait for all of it, not for ever.
	if b.left < min(float64(n), burst) {
		news = now.Sub(b.told) > time.Hour
		if news {
			b.told = now
		}
		return false, news
	}
	b.left -= float64(n)
	return true, false
}

// admitRate is the last question about a run that may come in otherwise.
func (g *Groups) admitRate(tx *storage.Tx, in replica.Incoming, s *snapshot) (int, pb.Code, error) {
	author, id, n := in.Run.Account(), in.Run.Feed(), in.Run.Len()
	if author == g.self.Account || in.Peer.Account == g.self.Account {
		return n, pb.Code_CODE_TAKEN, nil
	}
	k := rateKey{conv: id.Conversation, account: author, control: id.Number == feed.Control}
	rate, burst := g.cfg.Limits.Rate, float64(g.cfg.Limits.Burst)
	if k.control {
		rate, burst = g.cfg.Limits.ActRate, float64(g.cfg.Limits.ActBurst)
		if s.view.Role(author) >= roster.Admin {
			rate, burst = 10*rate, 10*burst
		}
	}
	if in.Peer.Account != author && !in.Peer.Account.IsZero() {
		k.account, k.others = in.Peer.Account, true
		rate, burst = relayed*rate, relayed*burst
	}
	ok, news := g.rates.take(k, n, rate, burst, g.now())
	if ok {
		return n, pb.Code_CODE_TAKEN, nil
	}
	g.flooded(id.Conversation)
	if !news {
		return 0, pb.Code_CODE_FULL, nil
	}
	return 0, pb.Code_CODE_FULL, g.tell(tx, News{Group: id.Conversation, Kind: NewsFlood, Account: k.account})
}
