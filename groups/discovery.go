package groups

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Directory tells others of public groups; *directory.Directory is the real one. It is an interface because the tests want
// to see what is told.
type Directory interface {
	// PublishGroup tells of a group whoever asks, and says so on every network.
	PublishGroup(card identity.GroupCard) error
	// AnswerGroup tells of a group whoever asks.
	AnswerGroup(card identity.GroupCard) error
	// UnpublishGroup ends both.
	UnpublishGroup(group identity.GroupID)
	// AskGroup asks a device for the cards of a name.
	AskGroup(ctx context.Context, device identity.DeviceID, name string) ([]identity.GroupCard, error)
}

const (
	// cardPause is how often the cards are looked after besides changes, cardSoon how long changes are collected.
	cardPause = 10 * time.Minute
	cardSoon  = 2 * time.Second
	// cardRenew is how old an own card may get before it is signed anew: half of its life, so that those who hold it have
	// days to get the next. cardSize is how long a card may claim a size that is not true any more.
	cardRenew = identity.GroupCardLifetime / 2
	cardSize  = 12 * time.Hour
	// cardFetch is how old a card of somebody else may get before a newer one is asked for. One that does not say what the
	// roster says is outdated at once. After a try in vain the next comes after cardSoonAgain, doubled up to cardAgain.
	cardFetch     = 24 * time.Hour
	cardSoonAgain = time.Minute
	cardAgain     = time.Hour
	// cardAsks is how many devices are asked each time.
	cardAsks = 6
	// cardAskTimeout bounds one question, dialling included.
	cardAskTimeout = 10 * time.Second
)

// keyCard keeps the newest card known of a public group that we are in.
const keyCard = "g/b/" // group 32: signed card

// noticeboard is what the loop of cards knows. It belongs to that loop, but for wake.
type noticeboard struct {
	wake chan struct{}              // ticks when some group changed
	told map[ID]told                // of the directory
	try  map[ID]try                 // of newer cards of somebody else
	ask  func(int, func(i, j int))  // shuffles; tests want an order
	wait func(context.Context) bool // pause between a change and looking; tests do not wait
}

// try is how asking for a newer card went.
type try struct {
	next  time.Time // when it may be asked for again
	pause time.Duration
	says  string // what the roster said then: what it says anew is asked for at once
}

type told struct {
	raw     string
	publish bool
}

func newNoticeboard() *noticeboard {
	return &noticeboard{
		wake: make(chan struct{}, 1), told: map[ID]told{}, try: map[ID]try{}, ask: rand.Shuffle,
		wait: func(ctx context.Context) bool { return pause(ctx, cardSoon) },
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (b *noticeboard) touch(ID) {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// runCards keeps what is told of our public groups true until ctx ends. Of a group that is not public nothing is told, made
// or kept.
func (g *Groups) runCards(ctx context.Context) error {
	if g.parts.Directory == nil {
		return nil
	}
	for {
		g.postAll(ctx)
		wait := cardPause*3/4 + rand.N(cardPause/2)
		for _, y := range g.board.try {
			wait = min(wait, max(y.next.Sub(g.now()), cardSoon))
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-g.board.wake:
			if !g.board.wait(ctx) {
				t.Stop()
				return nil
			}
		case <-t.C:
		}
		t.Stop()
	}
}

// notice is what is to be told of a group.
type notice struct {
	group ID
	role  roster.Role
	owner identity.AccountID
	card  identity.GroupCard // the newest that is held and still right; zero: none
	fresh identity.GroupCard // what the owner's device would sign now, not signed; of others zero
	name  string
	says  string               // join policy, description and admins, as a card repeats them
	from  []identity.AccountID // who may hold a newer card, the owner first
}

// postAll looks after every group once.
func (g *Groups) postAll(ctx context.Context) {
	var all []notice
	var gone []ID
	err := g.cfg.DB.View(func(tx *storage.Tx) error {
		live, err := g.live(tx)
		if err != nil {
			return err
		}
		public := map[ID]bool{}
		for _, conv := range live {
			n, ok, err := g.notice(tx, conv)
			if err != nil {
				return fmt.Errorf("reading group %s: %w", conv.Short(), err)
			}
			if ok {
				public[conv] = true
				all = append(all, n)
			}
		}
		return tx.Scan(storage.ScanOptions{Prefix: []byte(keyCard), KeysOnly: true}, func(k, _ []byte) (bool, error) {
			if conv := ID(k[len(keyCard):]); !public[conv] {
				gone = append(gone, conv)
			}
			return true, nil
		})
	})
	if err != nil {
		g.log.Error("looking after public groups", "error", err)
		return
	}
	for conv := range g.board.told {
		if !slices.ContainsFunc(all, func(n notice) bool { return n.group == conv }) {
			g.hush(conv)
		}
	}
	if len(gone) > 0 {
		g.keepCards(ctx, func(tx *storage.Tx) error {
			for _, conv := range gone {
				if err := tx.Delete(key(keyCard, conv[:])); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for _, n := range all {
		if ctx.Err() != nil {
			return
		}
		g.post(ctx, n)
	}
}

// hush ends telling of a group.
func (g *Groups) hush(conv ID) {
	g.parts.Directory.UnpublishGroup(identity.GroupID(conv))
	delete(g.board.told, conv)
	delete(g.board.try, conv)
}

func (g *Groups) keepCards(ctx context.Context, f func(tx *storage.Tx) error) {
	if err := g.cfg.DB.Update(ctx, f); err != nil && ctx.Err() == nil {
		g.log.Error("keeping the card of a group", "error", err)
	}
}

// notice reads what is to be told of a group; false: nothing, for it is not public, or that cannot be known.
func (g *Groups) notice(tx *storage.Tx, conv ID) (notice, bool, error) {
	row, ok, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || !ok || row.ReadOnly {
		return notice{}, false, err
	}
	gr, s, err := g.open(tx, conv, false)
	if err != nil {
		return notice{}, false, err
	}
	v := &s.view
	if v.Settings[roster.SettingPublic] != "yes" || v.Dissolved || v.Role(g.self.Account) == roster.None {
		return notice{}, false, nil
	}
	if len(v.People) == 0 || v.People[0].Role != roster.Owner {
		return notice{}, false, nil // nobody can sign for it
	}
	n := notice{group: conv, role: v.Role(g.self.Account), owner: v.People[0].Account, name: v.Settings[roster.SettingName]}
	var admins []identity.AccountID
	for _, p := range v.People[:min(len(v.People), identity.MaxGroupContacts)] {
		if p.Role >= roster.Admin {
			admins = append(admins, p.Account)
		}
	}
	n.says = cardSays(v.Settings[roster.SettingJoin], v.Settings[roster.SettingDescription], admins)
	for _, p := range v.People {
		if p.Account != g.self.Account {
			n.from = append(n.from, p.Account)
		}
	}
	if n.card, err = g.heldCard(tx, v, conv); err != nil {
		return notice{}, false, err
	}
	if n.role == roster.Owner {
		n.fresh, err = g.freshCard(tx, gr, s, conv)
	}
	return n, err == nil, err
}

// cardSays is what a card repeats of the roster, to be compared.
func cardSays(join, description string, admins []identity.AccountID) string {
	out := join + "\x00" + cutText(description, identity.MaxCardDescription)
	for _, a := range admins {
		out += "\x00" + string(a[:])
	}
	return out
}

// outdated tells whether a card does not say what the group says.
func (n *notice) outdated(c identity.GroupCard) bool {
	var admins []identity.AccountID
	for _, a := range c.Admins {
		admins = append(admins, a.Account)
	}
	return cardSays(c.Join, c.Description, admins) != n.says
}

// heldCard returns the card that is kept of a group, if it is still right.
func (g *Groups) heldCard(tx *storage.Tx, v *roster.View, conv ID) (identity.GroupCard, error) {
	raw, err := tx.Get(key(keyCard, conv[:]))
	if errors.Is(err, storage.ErrNotFound) {
		return identity.GroupCard{}, nil
	}
	if err != nil {
		return identity.GroupCard{}, err
	}
	c, err := identity.ParseGroupCard(raw)
	if err != nil || !g.rightCard(v, conv, c) {
		return identity.GroupCard{}, nil // it is asked for, or made, anew
	}
	return c, nil
}

// rightCard checks a card against the group itself: it is of this group, by who owns it now, on a device that counts, under
// the name that it has.
func (g *Groups) rightCard(v *roster.View, conv ID, c identity.GroupCard) bool {
	if c.Group != identity.GroupID(conv) || c.Validate(g.now()) != nil || len(v.People) == 0 || v.People[0].Role != roster.Owner {
		return false
	}
	if c.Account != v.People[0].Account || c.Name != v.Settings[roster.SettingName] {
		return false
	}
	if _, out := v.Revokes(c.Account, c.Certificate.Device); out {
		return false
	}
	r, ok := g.cfg.Records(c.Account)
	return !ok || !r.Revokes(c.Certificate.Device)
}

// freshCard fills in what the owner would say of the group now.
func (g *Groups) freshCard(tx *storage.Tx, gr *group, s *snapshot, conv ID) (identity.GroupCard, error) {
	v := &s.view
	at, ok := gr.place(roster.ID(conv))
	if !ok {
		return identity.GroupCard{}, fmt.Errorf("genesis: %w", ErrNotFound)
	}
	genesis, err := g.entry(tx, conv, at)
	if err != nil {
		return identity.GroupCard{}, err
	}
	proofs, err := g.transfers(tx, gr, v, conv)
	if err != nil {
		return identity.GroupCard{}, err
	}
	c := identity.GroupCard{
		Genesis: genesis.RawHeader(), Transfers: transferPath(at.account, g.self.Account, proofs), Certificate: g.cfg.Certificate,
		Name: v.Settings[roster.SettingName], Description: cutText(v.Settings[roster.SettingDescription], identity.MaxCardDescription),
		Size: uint32(len(v.People)), Join: v.Settings[roster.SettingJoin],
	}
	for _, a := range g.asks(s) {
		// Who is a plain member is nobody's business outside.
		if v.Role(a.Account) >= roster.Admin {
			c.Admins = append(c.Admins, a)
		}
	}
	return c, nil
}

// transfers collects the proofs of the transfers that count.
func (g *Groups) transfers(tx *storage.Tx, gr *group, v *roster.View, conv ID) ([]identity.TransferProof, error) {
	var at []place
	gr.mu.Lock()
	for i := range gr.roster.Len() {
		if a := gr.roster.At(i); a.Kind == roster.Transfer && v.Void[a.ID] == "" {
			at = append(at, gr.places[a.ID])
		}
	}
	gr.mu.Unlock()
	var out []identity.TransferProof
	for _, p := range at {
		e, err := g.entry(tx, conv, p)
		if err != nil {
			return nil, err
		}
		content, err := e.Content()
		if err != nil {
			return nil, err
		}
		var m pb.GroupTransfer
		if err := proto.Unmarshal(content, &m); err != nil {
			return nil, fmt.Errorf("reading a transfer: %w", err)
		}
		proof, err := identity.ParseTransferProof(m.Proof)
		if err != nil {
			return nil, err
		}
		out = append(out, proof)
	}
	return out, nil
}

// transferPath is the shortest way by which a group came from its founder to its owner.
func transferPath(founder, owner identity.AccountID, proofs []identity.TransferProof) []identity.TransferProof {
	if founder == owner {
		return nil
	}
	by := map[identity.AccountID]identity.TransferProof{}
	queue := []identity.AccountID{founder}
	for len(queue) > 0 {
		from := queue[0]
		queue = queue[1:]
		for _, p := range proofs {
			if _, been := by[p.To]; p.From != from || been || p.To == founder {
				continue
			}
			by[p.To] = p
			queue = append(queue, p.To)
		}
	}
	var path []identity.TransferProof
	for at := owner; at != founder; {
		p, ok := by[at]
		if !ok {
			return nil
		}
		path = append(path, p)
		at = p.From
	}
	slices.Reverse(path)
	return path
}

// cutText cuts a text between two characters.
func cutText(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}

// post tells of one group what is right now.
func (g *Groups) post(ctx context.Context, n notice) {
	card := n.card
	switch {
	case n.role == roster.Owner:
		if g.stale(n) {
			card = g.signCard(ctx, n)
		}
	case card.IsZero() || g.now().Sub(card.Time) >= cardFetch || n.outdated(card):
		if newer := g.fetchCard(ctx, n); !newer.IsZero() {
			card = newer
		}
	default:
		delete(g.board.try, n.group)
	}
	if card.IsZero() {
		if _, ok := g.board.told[n.group]; ok {
			g.hush(n.group)
		}
		return
	}
	t := told{raw: string(card.Raw()), publish: n.role >= roster.Admin}
	if g.board.told[n.group] == t {
		return
	}
	tell := g.parts.Directory.AnswerGroup
	if t.publish {
		tell = g.parts.Directory.PublishGroup
	}
	if err := tell(card); err != nil {
		g.log.Warn("telling of a public group", "group", n.group.Short(), "error", err)
		return
	}
	g.board.told[n.group] = t
}

// stale tells whether the owner's device has to sign a new card.
func (g *Groups) stale(n notice) bool {
	c, f, age := n.card, n.fresh, g.now().Sub(n.card.Time)
	if c.IsZero() || age >= cardRenew || age < 0 || c.Certificate.Device != g.self.Device {
		return true
	}
	same := !n.outdated(c) && slices.EqualFunc(c.Admins, f.Admins, func(a, b Contact) bool {
		return a.Account == b.Account && slices.EqualFunc(a.Devices, b.Devices, func(x, y identity.InviteDevice) bool { return x.Device == y.Device })
	})
	return !same || c.Size != f.Size && age >= cardSize
}

// signCard makes and keeps a card of an own group.
func (g *Groups) signCard(ctx context.Context, n notice) identity.GroupCard {
	c := n.fresh
	c.Time = g.now()
	if !c.Time.After(n.card.Time) && n.card.Time.Sub(c.Time) < identity.ClockSlack {
		c.Time = n.card.Time.Add(time.Millisecond) // the newer of two is known by its time
	}
	c.Expires = c.Time.Add(identity.GroupCardLifetime)
	c, err := identity.NewGroupCard(g.cfg.Key, c)
	if err != nil {
		g.log.Warn("signing the card of a group", "group", n.group.Short(), "error", err)
		return n.card
	}
	g.keepCards(ctx, func(tx *storage.Tx) error { return tx.Set(key(keyCard, n.group[:]), c.Raw()) })
	return c
}

// fetchCard asks those who may have it for the owner's newest card: who is connected, and if nobody is and it becomes
// urgent, the owner and others. Whatever comes is checked against the group.
func (g *Groups) fetchCard(ctx context.Context, n notice) identity.GroupCard {
	now, y := g.now(), g.board.try[n.group]
	if now.Before(y.next) && y.says == n.says || g.parts.Devices == nil {
		return identity.GroupCard{}
	}
	if y.says != n.says {
		y.pause = 0
	}
	y.says, y.pause = n.says, min(max(2*y.pause, cardSoonAgain), cardAgain)
	y.next = now.Add(y.pause/2 + rand.N(y.pause))
	g.board.try[n.group] = y
	urgent := n.card.IsZero() || n.card.Expires.Sub(now) < cardRenew || n.outdated(n.card)
	best := identity.GroupCard{}
	for _, dev := range g.cardHolders(n, urgent) {
		ask, cancel := context.WithTimeout(ctx, cardAskTimeout)
		cards, err := g.parts.Directory.AskGroup(ask, dev, n.name)
		cancel()
		if ctx.Err() != nil {
			return identity.GroupCard{}
		}
		if err != nil {
			g.log.Debug("asking for the card of a group", "device", dev.Short(), "error", err)
			continue
		}
		for _, c := range cards {
			if c.Group == identity.GroupID(n.group) && c.Time.After(cmp.Or(best.Time, n.card.Time)) {
				best = g.admitCard(ctx, n, c, best)
			}
		}
		if !best.IsZero() && now.Sub(best.Time) < cardFetch && !n.outdated(best) {
			delete(g.board.try, n.group)
			break
		}
	}
	return best
}

// admitCard keeps a card if the group as it is now says that it is right.
func (g *Groups) admitCard(ctx context.Context, n notice, c, before identity.GroupCard) identity.GroupCard {
	ok := false
	g.keepCards(ctx, func(tx *storage.Tx) error {
		_, s, err := g.open(tx, n.group, false)
		if err != nil {
			return err
		}
		if ok = s.view.Settings[roster.SettingPublic] == "yes" && g.rightCard(&s.view, n.group, c); !ok {
			return nil
		}
		return tx.Set(key(keyCard, n.group[:]), c.Raw())
	})
	if !ok {
		return before
	}
	return c
}

// cardHolders lists the devices to ask.
func (g *Groups) cardHolders(n notice, urgent bool) []identity.DeviceID {
	var near, far []identity.DeviceID
	others := slices.Clone(n.from)
	if len(others) > 1 {
		rest := others[1:] // the owner stays first
		if others[0] != n.owner {
			rest = others
		}
		g.board.ask(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	}
	for _, account := range others {
		for _, dev := range g.parts.Devices(account) {
			if g.parts.Feeds.Connected(dev) {
				near = append(near, dev)
			} else if urgent {
				far = append(far, dev)
			}
		}
	}
	out := append(near, far[:min(len(far), cardAsks/2)]...)
	return out[:min(len(out), cardAsks)]
}
