package messenger

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/text"
	"hima/storage"
)

// target is whom a name means.
type target struct {
	account  identity.AccountID
	group    feed.ConversationID // not zero: a group, and nobody
	username string              // as it was found, not confirmed
	nickname string
	source   Source
	chosen   bool            // by the owner: contact, asked, or written to
	invite   identity.Invite // if it was an invite link

	confirmed    bool // network stamped the name
	since        time.Time
	network      string // where the name was found
	disagreement bool   // somebody who should know named others
	others       []target
}

// who resolves what users type for people. Inward it knows only those we have to do with already; outward, for Find and
// AddContact alone, it also looks at invite links and at the LAN.
type who struct {
	m *Messenger

	mu         sync.Mutex // owns the caches; one is valid for one generation of the contact table
	generation uint64
	cache      map[string]target

	peopleGeneration uint64
	people           []acquaintance // nil: not read yet

	talkGeneration uint64 // the same for names that may be groups'
	talks          map[string]target
	groups         atomic.Uint64 // counts what happened in groups

	taken map[groups.ID]takenNames
}

// takenNames are the names of the members of a group, which every line of it needs. They are read in transactions that may have
// begun before the generation they are kept under, and so are read again after a moment in any case.
type takenNames struct {
	generation uint64
	at         time.Time
	names      map[string][]identity.AccountID // read-only
}

const (
	takenAge   = 5 * time.Second
	takenCache = 64 // groups
)

// takenIn gives the names of a group as they were kept; nil: they have to be read.
func (w *who) takenIn(id groups.ID, generation uint64, now time.Time) map[string][]identity.AccountID {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.taken[id]
	if t.generation != generation || now.Sub(t.at).Abs() > takenAge {
		return nil
	}
	return t.names
}

func (w *who) keepTaken(id groups.ID, t takenNames) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.taken) >= takenCache {
		clear(w.taken)
	}
	w.taken[id] = t
}

const whoCache = 4096

// acquaintance is somebody heard of, with what names find them.
type acquaintance struct {
	target
	remark string
}

func newWho(m *Messenger) *who {
	return &who{m: m, cache: make(map[string]target), talks: make(map[string]target), taken: make(map[groups.ID]takenNames)}
}

// known resolves a name among self, contacts, requests and everybody with a conversation.
func (w *who) known(name string) (target, error) {
	generation := w.m.contacts.generation()
	w.mu.Lock()
	t, ok := w.cache[name]
	ok = ok && w.generation == generation
	w.mu.Unlock()
	if ok {
		return t, nil
	}
	t, err := w.search(name)
	if err != nil || t.source == SourceNearby {
		return t, err // who bears a name on the LAN changes by itself
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.generation != generation || len(w.cache) >= whoCache {
		w.generation = generation
		clear(w.cache)
	}
	w.cache[name] = t
	return t, nil
}

func (w *who) search(name string) (target, error) {
	if err := typed(name); err != nil {
		return target{}, err
	}
	found, err := w.inward(name)
	if err != nil {
		return target{}, err
	}
	t, err := one(name, chosen(found))
	if err != nil && len(found) == 0 {
		return target{}, refuse(ErrNotFound, "nobody you know has this name", "`hima contact list` shows names, `hima contact add` adds people")
	}
	return t, err
}

// chosen leaves those whom the owner asked, accepted or writes to, if there are any: a stranger who takes the name of one of
// them must not make it useless.
func chosen(found []target) []target {
	if !slices.ContainsFunc(found, func(t target) bool { return t.chosen }) {
		return found
	}
	var out []target
	for _, t := range found {
		if t.chosen {
			out = append(out, t)
		}
	}
	return out
}

// one picks the only candidate.
func one(name string, found []target) (target, error) {
	switch len(found) {
	case 0:
		return target{}, refuse(ErrNotFound, "nobody of this name was found", "`hima nearby` shows who is on this LAN")
	case 1:
		return found[0], nil
	}
	return target{}, ambiguous(found)
}

func ambiguous(found []target) *Error {
	err := refuse(ErrAmbiguous, "the name means several people", "use the account ID")
	for _, t := range found {
		err.Candidates = append(err.Candidates, Candidate{
			Account: t.account, Username: t.username, Nickname: t.nickname, Source: t.source,
		})
	}
	slices.SortFunc(err.Candidates, func(a, b Candidate) int { return strings.Compare(a.Account.String(), b.Account.String()) })
	return err
}

// matcher says how a typed name is compared.
type matcher struct {
	id       identity.AccountID
	whole    bool   // id is what was typed
	prefix   string // beginning of an account ID, lower case
	username string // canonical
	remark   string
}

const (
	selfName   = "self"
	userPrefix = "user:"
	idPrefix   = "hima1"
)

func newMatcher(name string) matcher {
	name = strings.TrimSpace(name)
	if rest, ok := strings.CutPrefix(name, userPrefix); ok {
		u, err := text.Username(rest)
		if err != nil {
			return matcher{}
		}
		return matcher{username: u}
	}
	if id, err := identity.ParseAccountID(name); err == nil {
		return matcher{id: id, whole: true}
	}
	var q matcher
	// The ellipsis is what Short puts behind an ID.
	if p := strings.ToLower(strings.TrimSuffix(name, "…")); strings.HasPrefix(p, idPrefix) && len(p) >= len(idPrefix)+minPrefix {
		q.prefix = p
	}
	if u, err := text.Username(name); err == nil {
		q.username = u
	}
	q.remark = strings.TrimSpace(text.OneLine(name, maxRemark))
	return q
}

func (q *matcher) account(a identity.AccountID) bool {
	return q.whole && a == q.id || q.prefix != "" && strings.HasPrefix(a.String(), q.prefix)
}

func (q *matcher) name(username string) bool { return q.username != "" && username == q.username }

// inward lists those we know who fit a name.
func (w *who) inward(name string) ([]target, error) {
	m := w.m
	q := newMatcher(name)
	if strings.TrimSpace(name) == selfName || q.account(m.env.account) {
		return []target{{account: m.env.account, username: m.settings.username(), source: SourceContact}}, nil
	}
	found, err := w.acquainted(&q)
	if err != nil || len(found) > 0 {
		return found, err
	}
	// The name on the LAN changes nothing about who is known, but a temporary chat has no other name yet.
	return w.nearbyKnown(&q)
}

// acquainted lists those who fit and whom we have, or had, to do with.
func (w *who) acquainted(q *matcher) (found []target, err error) {
	people, err := w.everybody()
	for _, p := range people {
		if q.account(p.account) || q.name(p.username) || q.remark != "" && p.remark == q.remark {
			found = append(found, p.target)
		}
	}
	return found, err
}

// everybody lists all accounts ever heard of. It is kept while the contacts stay what they are: reading the table for each
// name was a good part of what the first screen of a conversation cost.
func (w *who) everybody() ([]acquaintance, error) {
	m := w.m
	generation := m.contacts.generation()
	w.mu.Lock()
	people := w.people
	ok := people != nil && w.peopleGeneration == generation
	w.mu.Unlock()
	if ok {
		return people, nil
	}
	people = []acquaintance{}
	err := m.env.db.View(func(tx *storage.Tx) error {
		return m.contacts.each(tx, func(a identity.AccountID, row contactRow) error {
			t := target{account: a, username: row.username(), nickname: row.Card.Nickname, source: SourceContact, chosen: !row.stranger()}
			if row.relation() == RelationRequest {
				t.source = SourceRequest
			}
			people = append(people, acquaintance{t, row.Remark})
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.people, w.peopleGeneration = people, generation
	w.mu.Unlock()
	return people, nil
}

// nearbyKnown finds those we have a conversation with by the name they give on the LAN.
func (w *who) nearbyKnown(q *matcher) (found []target, err error) {
	err = w.m.env.db.View(func(tx *storage.Tx) error {
		for _, t := range w.nearby(q) {
			row, ok, err := w.m.contacts.get(tx, t.account)
			if err != nil {
				return err
			}
			if ok && row.relation() != RelationNone {
				found = append(found, t)
			}
		}
		return nil
	})
	return found, err
}

// nearby lists people on the LAN who fit. Several devices of one account are one person.
func (w *who) nearby(q *matcher) (found []target) {
	people, _ := w.m.env.people.Nearby()
	for _, p := range people {
		p = cleanPerson(p)
		if p.Account == w.m.env.account || !q.account(p.Account) && !q.name(p.Username) {
			continue
		}
		if slices.ContainsFunc(found, func(t target) bool { return t.account == p.Account }) {
			continue
		}
		found = append(found, target{account: p.Account, username: p.Username, nickname: p.Nickname, source: SourceNearby})
	}
	return found
}

// cleanPerson neutralises what somebody on the LAN says of themselves.
func cleanPerson(p Person) Person {
	name, err := text.Username(p.Username)
	if err != nil {
		name = ""
	}
	p.Username, p.Nickname = name, text.Nickname(p.Nickname)
	return p
}

// outward resolves a name for Find and AddContact: invite link, account ID, then those known, those nearby and those on
// the networks together, so that a name that two people bear is never decided silently (R20). Whom a contact's name means
// on a network changes nothing about the contact; it makes the name ambiguous here.
func (w *who) outward(ctx context.Context, name string) (target, error) {
	name = strings.TrimSpace(name)
	if err := typed(name); err != nil {
		return target{}, err
	}
	if looksLikeLink(name) {
		return invited(name)
	}
	found, err := w.inward(name)
	if err != nil {
		return target{}, err
	}
	if len(found) == 1 && found[0].account == w.m.env.account {
		return found[0], nil
	}
	q := newMatcher(name)
	for _, t := range w.nearby(&q) {
		if i := slices.IndexFunc(found, func(f target) bool { return f.account == t.account }); i >= 0 {
			if found[i].username == "" {
				found[i].username = t.username
			}
			continue
		}
		found = append(found, t)
	}
	ns, err := w.m.onNetworks(ctx, q.username)
	if err != nil {
		return target{}, err
	}
	best, others := bearers(ns.People)
	found = addFound(found, best)
	switch {
	case len(found) == 0 && q.whole:
		return target{account: q.id, source: SourceID}, nil
	case len(found) == 0 && len(ns.Unreachable) > 0:
		return target{}, refuse(ErrUnavailable, "nobody of this name is known here, and not all networks could be asked: "+
			strings.Join(ns.Unreachable, ", "), "`hima network status` shows why")
	}
	t, err := one(name, found)
	if err != nil || t.network == "" || !ns.Disagreement {
		return t, err
	}
	t.disagreement = true
	for _, o := range addFound(nil, others) {
		if o.account != t.account {
			t.others = append(t.others, o)
		}
	}
	return t, nil
}

// invited reads an invite link.
func invited(link string) (target, error) {
	in, err := identity.ParseInvite(link)
	if err != nil {
		return target{}, refuse(ErrInvalid, "this invite link is not complete", "copy it again, from `hima:` to its end")
	}
	u, err := text.Username(in.Username)
	if err != nil {
		u = ""
	}
	return target{account: in.Account, username: u, source: SourceInvite, invite: in}, nil
}

func looksLikeLink(s string) bool { return len(s) > 5 && strings.EqualFold(s[:5], "hima:") }

// Find resolves a name outward and changes nothing.
func (m *Messenger) Find(ctx context.Context, name string) (Found, error) {
	t, err := m.who.outward(ctx, name)
	if err != nil {
		return Found{}, err
	}
	f := Found{
		Account: t.account, Username: t.username, Nickname: t.nickname, Source: t.source, Relation: RelationNone,
		Confirmed: t.confirmed, Since: t.since, Network: t.network, Disagreement: t.disagreement,
	}
	for _, o := range t.others {
		f.Others = append(f.Others, Candidate{Account: o.account, Username: o.username, Source: o.source})
	}
	for _, l := range m.unjoined(t.invite) {
		f.Networks = append(f.Networks, networkName(l.Name))
	}
	return f, m.env.db.View(func(tx *storage.Tx) error {
		row, ok, err := m.contacts.get(tx, t.account)
		if ok {
			f.Relation = row.relation()
		}
		return err
	})
}

// Nearby lists the people on this LAN.
func (m *Messenger) Nearby(ctx context.Context) (people []NearbyPerson, multicast bool, err error) {
	list, multicast := m.env.people.Nearby()
	err = m.env.db.View(func(tx *storage.Tx) error {
		for _, p := range list {
			if p.Account == m.env.account {
				continue
			}
			p = cleanPerson(p)
			row, _, err := m.contacts.get(tx, p.Account)
			if err != nil {
				return err
			}
			people = append(people, NearbyPerson{
				Account: p.Account, Device: p.Device, Username: p.Username, Nickname: p.Nickname,
				Address: p.Address, Relation: row.relation(), Seen: p.Seen,
			})
		}
		return nil
	})
	return people, multicast, err
}

// NameOf says what to show for an account: remark, nickname, username or short ID.
func (m *Messenger) NameOf(ctx context.Context, a identity.AccountID) (name string, err error) {
	if a == m.env.account {
		return m.ownName(), nil
	}
	err = m.env.db.View(func(tx *storage.Tx) error {
		row, _, err := m.contacts.get(tx, a)
		name = row.name(a)
		return err
	})
	return name, err
}

// Person says what is known of any account, also of strangers and of the own one.
func (m *Messenger) Person(ctx context.Context, a identity.AccountID) (Contact, error) {
	list, err := m.People(ctx, []identity.AccountID{a})
	if err != nil {
		return Contact{}, err
	}
	return list[0], nil
}

// People is Person for many, in the order asked.
func (m *Messenger) People(_ context.Context, accounts []identity.AccountID) ([]Contact, error) {
	out := make([]Contact, len(accounts))
	err := m.env.db.View(func(tx *storage.Tx) error {
		for i, a := range accounts {
			row, _, err := m.contacts.get(tx, a)
			if err != nil {
				return err
			}
			out[i] = m.contactView(a, &row)
			if a == m.env.account {
				out[i].Relation, out[i].Username, out[i].Nickname = RelationSelf, m.settings.username(), m.settings.now(profileNickname)
				out[i].Conversation = m.env.self
			}
		}
		return nil
	})
	return out, err
}

// Conversation resolves a name to its conversation.
func (m *Messenger) Conversation(ctx context.Context, name string) (feed.ConversationID, error) {
	t, err := m.who.talk(name)
	if err != nil {
		return feed.ConversationID{}, err
	}
	return m.conversationOfTarget(&t), nil
}

// conversationOfTarget names the conversation with whom a name means.
func (m *Messenger) conversationOfTarget(t *target) feed.ConversationID {
	if !t.group.IsZero() {
		return t.group
	}
	return m.conversationID(t.account)
}
