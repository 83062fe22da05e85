package groups

import (
	"errors"
	"slices"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// Applied takes entries of groups that were stored, acts into the roster. It is called inside the transaction that stores
// them, after whoever keeps histories has seen them; own acts are not passed to it.
func (g *Groups) Applied(tx *storage.Tx, a replica.Applied) error {
	for rest := a.Entries; len(rest) > 0; {
		id := rest[0].Feed()
		n := slices.IndexFunc(rest, func(e feed.Entry) bool { return e.Feed() != id })
		if n < 0 {
			n = len(rest)
		}
		var err error
		if id.Number == feed.Control {
			if !a.Detached {
				err = g.dropActs(tx, id, rest[n-1].Seq)
			}
			if err == nil {
				err = g.fold(tx, id.Conversation, rest[:n])
			}
			if err == nil {
				err = g.proveAgain(tx, id, rest[n-1].Seq)
			}
		} else {
			err = g.countChat(tx, id.Conversation, rest[:n])
		}
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// change is what a step did to a roster.
type change struct {
	conv          ID
	gr            *group
	before, after *snapshot
	row           groupRow
	acts          []roster.Act // that came into the graph, ancestors first
	anew          bool         // acts that were in it are worth something else now, or gone
}

// fold takes control entries of one group into its roster.
func (g *Groups) fold(tx *storage.Tx, conv ID, entries []feed.Entry) error {
	return g.change(tx, conv, func(c *change) (uint64, error) { return g.addActs(tx, c, entries) })
}

// change does something to a roster that adds acts to it, which are counted, and what follows from it. The function is called
// with mu of the group held.
func (g *Groups) change(tx *storage.Tx, conv ID, add func(*change) (uint64, error)) error {
	gr, before, err := g.open(tx, conv, true)
	if err != nil {
		return err
	}
	row, _, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil {
		return err
	}
	c := change{conv: conv, gr: gr, before: before, row: row}
	if err := c.run(tx, add); err != nil {
		return err
	}
	if c.after == nil {
		return g.saveRow(tx, conv, row, c.row)
	}
	if err := g.react(tx, &c); err != nil {
		return err
	}
	if err := g.saveRow(tx, conv, row, c.row); err != nil {
		return err
	}
	g.hearAgain(tx, &c)
	tx.OnCommit(func() { g.settled(&c) })
	if c.row.Ours && before.view.Role(g.self.Account) == roster.None && c.after.view.Role(g.self.Account) != roster.None {
		return g.introduce(tx, conv)
	}
	return nil
}

// introduce gives us a name in a group that we came into, if we never had one there: most members are no contacts of each
// other, and would see an account ID.
func (g *Groups) introduce(tx *storage.Tx, conv ID) error {
	if g.parts.DefaultNickname == nil {
		return nil
	}
	name := clip(g.parts.DefaultNickname(), MaxNickname)
	have, err := g.Nickname(tx, conv, g.self.Account)
	if err != nil || have != "" || name == "" || !validSetting(SettingNickname, name) {
		return err
	}
	err = g.act(tx, conv, roster.Act{Kind: roster.Nickname, Value: name}, nil)
	if errors.Is(err, ErrNotAllowed) || errors.Is(err, ErrReadOnly) || errors.Is(err, ErrFull) || errors.Is(err, ErrDissolved) {
		return nil
	}
	return err
}

// run adds acts and takes down what that did.
func (c *change) run(tx *storage.Tx, add func(*change) (uint64, error)) error {
	gr := c.gr
	gr.mu.Lock()
	defer gr.mu.Unlock()
	from := gr.roster.Len()
	added, err := add(c)
	if added == 0 || err != nil {
		return err
	}
	gr.countWaiting()
	for i := from; i < gr.roster.Len(); i++ {
		c.acts = append(c.acts, *gr.roster.At(i))
	}
	v := c.before.version + added
	c.after = gr.snap(v)
	return tx.Set(key(keyCount, c.conv[:]), be64(v))
}

// addActs stores the acts among control entries and adds them to the graph. What is no act stays in its feed and counts for
// nothing, the same for everybody. Called with mu of the group held.
func (g *Groups) addActs(tx *storage.Tx, c *change, entries []feed.Entry) (added uint64, err error) {
	gr := c.gr
	for i := range entries {
		e := &entries[i]
		if !feed.Known(e.Number, e.Kind) {
			if !c.row.ReadOnly {
				c.row.ReadOnly = true
				if err := g.tell(tx, News{Group: c.conv, Kind: NewsReadOnly, Account: e.Account, Entry: e}); err != nil {
					return 0, err
				}
			}
			continue
		}
		a, err := ParseAct(e)
		if err != nil {
			g.log.Warn("an act that is none", "group", c.conv.Short(), "account", e.Account.Short(), "error", err)
			continue
		}
		if _, ok := gr.places[a.ID]; ok {
			continue
		}
		p := place{device: e.Device, account: e.Account, seq: e.Seq, clock: e.Clock, timeMS: e.TimeMS}
		a.Forked = gr.forked(p)
		// One that finds no room to wait is stored all the same and finds it when the roster is loaded again.
		if err := gr.roster.Add(a); err != nil && !errors.Is(err, roster.ErrTooMany) {
			g.log.Warn("an act that is none", "group", c.conv.Short(), "account", e.Account.Short(), "error", err)
			continue
		}
		if err := tx.Set(actKey(c.conv, e.Clock, e.ID), appendAct(nil, &a, p)); err != nil {
			return 0, err
		}
		gr.put(a.ID, p)
		added++
	}
	return added, nil
}

func (g *Groups) saveRow(tx *storage.Tx, conv ID, before, after groupRow) error {
	if before.State == after.State && before.ReadOnly == after.ReadOnly && before.Joined == after.Joined && before.Name == after.Name &&
		before.Applied == after.Applied {
		return nil
	}
	return putRow(tx, groupKey(conv), after)
}

// Forked takes the news that a feed of a group has two branches (R3). Acts from there on count for nothing, whichever branch
// is held; it is called again with a lower number when more is known.
func (g *Groups) Forked(tx *storage.Tx, f replica.Fork) error {
	conv := f.Feed.Conversation
	known, err := g.Is(tx, conv)
	if err != nil || !known || f.Feed.Number != feed.Control {
		return err
	}
	k := key(keyFork, conv[:], f.Feed.Device[:])
	at, err := readNumber(tx, k)
	if err != nil || at != 0 && at <= f.At {
		return err
	}
	_, before, err := g.open(tx, conv, true)
	if err != nil {
		return err
	}
	if err := tx.Set(k, be64(f.At)); err != nil {
		return err
	}
	fresh, err := g.refold(tx, conv, before)
	if err != nil {
		return err
	}
	tx.OnCommit(func() { g.parts.Feeds.PushKeys(conv) }) // what acts wait for may lie on a branch
	account, ok := fresh.accountOf(f.Feed.Device)
	if !ok {
		return nil // a device of which nothing is here, and whose it is its own word only
	}
	return g.tell(tx, News{Group: conv, Kind: NewsFork, Account: account})
}

// refold folds a group from what is on disk, as a state of its own, and does what follows from that.
func (g *Groups) refold(tx *storage.Tx, conv ID, before *snapshot) (*group, error) {
	if err := tx.Set(key(keyCount, conv[:]), be64(before.version+1)); err != nil {
		return nil, err
	}
	fresh, after, err := g.open(tx, conv, true)
	if err != nil {
		return nil, err
	}
	row, _, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil {
		return nil, err
	}
	c := change{conv: conv, gr: fresh, before: before, after: after, row: row, anew: true}
	if err := g.react(tx, &c); err != nil {
		return nil, err
	}
	if err := g.saveRow(tx, conv, row, c.row); err != nil {
		return nil, err
	}
	g.hearAgain(tx, &c)
	tx.OnCommit(func() { g.settled(&c) })
	return fresh, nil
}

// dropActs takes acts out of the graph whose entries stood ahead of a gap and turned out not to follow what filled it: they are
// not in the entry store any more, so that nobody could be shown them who finds them named.
func (g *Groups) dropActs(tx *storage.Tx, id feed.FeedID, last uint64) error {
	gr, before, err := g.open(tx, id.Conversation, true)
	if err != nil {
		return err
	}
	ahead := map[roster.ID]place{}
	gr.mu.Lock()
	if gr.last[id.Device] > last {
		for act, p := range gr.places {
			if p.device == id.Device && p.seq > last && !gr.forked(p) {
				ahead[act] = p
			}
		}
	}
	gr.mu.Unlock()
	dropped := false
	for act, p := range ahead {
		e, err := g.entry(tx, id.Conversation, p)
		if err == nil && e.ID == feed.EntryID(act) {
			continue
		}
		if err != nil && !errors.Is(err, replica.ErrNoEntry) {
			return err
		}
		if err := tx.Delete(actKey(id.Conversation, p.clock, feed.EntryID(act))); err != nil {
			return err
		}
		dropped = true
	}
	if dropped {
		_, err = g.refold(tx, id.Conversation, before)
	}
	return err
}

// accountOf returns the account of a device that acted.
func (gr *group) accountOf(device identity.DeviceID) (identity.AccountID, bool) {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	p, ok := gr.places[gr.numbers[number{device, 1}]]
	return p.account, ok
}

// tell hands news on.
func (g *Groups) tell(tx *storage.Tx, n News) error {
	n.Self = n.Self || n.Subject == g.self.Account
	return g.cfg.News(tx, n)
}

// react does what follows from a change of a roster, in its transaction.
func (g *Groups) react(tx *storage.Tx, c *change) error {
	was, is := c.before.view.Role(g.self.Account), c.after.view.Role(g.self.Account)
	if err := g.trackMembers(tx, c, was != roster.None && is != roster.None); err != nil {
		return err
	}
	if err := g.news(tx, c, was, is); err != nil {
		return err
	}
	switch {
	case is != roster.None:
		c.row.State, c.row.Went = StateMember, ""
		if app := c.row.Applied; app != nil {
			if to, may := c.approved(*app, g.self.Account); may {
				done := *app
				done.State, done.Reason, done.By, c.row.Applied = to, "", identity.AccountID{}, &done
				c.row.Told, c.row.Answers = nil, nil
			}
		}
		if c.after.view.Dissolved {
			c.row.State = StateDissolved
		}
		if p, ok := person(&c.after.view, g.self.Account); ok {
			if at, ok := c.gr.place(p.Admitted); ok {
				c.row.Joined = at.timeMS
			}
		}
	case was != roster.None:
		c.row.State = StateRemoved
		for _, a := range c.acts {
			if a.Kind == roster.Leave && a.Author == g.self.Account && c.after.view.Void[a.ID] == "" {
				c.row.State = StateLeft
			}
		}
		c.row.Went = c.row.State
	}
	if was == roster.None && is == roster.None && c.row.State == StateJoining {
		if err := g.endUnseen(tx, c); err != nil {
			return err
		}
	}
	return g.promoteKeys(tx, c)
}

// person finds somebody who is in.
func person(v *roster.View, account identity.AccountID) (roster.Person, bool) {
	if v.Role(account) == roster.None {
		return roster.Person{}, false
	}
	i := slices.IndexFunc(v.People, func(p roster.Person) bool { return p.Account == account })
	if i < 0 {
		return roster.Person{}, false
	}
	return v.People[i], true
}

// trackMembers keeps the index of who shares the group, and settles what was asked of people who are in now. Who is not in
// any more stays in the index: they are told of their removal (R33).
func (g *Groups) trackMembers(tx *storage.Tx, c *change, settle bool) error {
	enter := func(account identity.AccountID) error {
		if account == g.self.Account {
			return nil
		}
		if err := tx.Set(memberKey(account, c.conv), nil); err != nil || !settle {
			return err
		}
		return g.letIn(tx, c, account)
	}
	for _, p := range c.after.view.People {
		if c.before.view.Role(p.Account) == roster.None {
			if err := enter(p.Account); err != nil {
				return err
			}
		}
	}
	for account := range c.after.view.Gone {
		_, gone := c.before.view.Gone[account]
		p, in := person(&c.before.view, account)
		if !gone && !in && account != g.self.Account {
			if err := tx.Set(memberKey(account, c.conv), nil); err != nil {
				return err
			}
		}
		if in && p.Nickname != "" {
			if err := tx.Set(key(keyNick, c.conv[:], account[:]), []byte(p.Nickname)); err != nil {
				return err
			}
		}
	}
	return nil
}

// news tells of the acts that came in. What happened before we were let in makes no news.
func (g *Groups) news(tx *storage.Tx, c *change, was, is roster.Role) error {
	if was == roster.None && is == roster.None {
		return nil
	}
	var joined roster.ID
	var floor uint64
	if p, ok := person(&c.after.view, g.self.Account); ok {
		at, _ := c.gr.place(p.Admitted)
		floor = at.clock
		if was == roster.None {
			joined = p.Admitted
		}
	}
	for i := range c.acts {
		a := &c.acts[i]
		at, _ := c.gr.place(a.ID)
		if at.clock < floor || a.Forked && a.Kind == roster.Nickname {
			continue // the latter may be known by its header alone, and says nothing that anybody misses
		}
		n := describe(a)
		n.Group = c.conv
		if why := c.after.view.Void[a.ID]; why != "" {
			n = News{Group: c.conv, Kind: NewsVoid, Account: a.Author, Subject: a.Account, Text: string(why)}
		} else if a.ID == joined {
			n.Kind, n.Self = NewsJoined, true
		}
		if err := g.tellAct(tx, c, n, at); err != nil {
			return err
		}
	}
	// What counted until now and does not any more.
	for id, why := range c.after.view.Void {
		at, ok := c.gr.place(id)
		if _, void := c.before.view.Void[id]; void || !ok || at.clock < floor || slices.ContainsFunc(c.acts, func(a roster.Act) bool { return a.ID == id }) {
			continue
		}
		if err := g.tellAct(tx, c, News{Group: c.conv, Kind: NewsVoid, Account: at.account, Text: string(why)}, at); err != nil {
			return err
		}
	}
	if was != roster.None && is == roster.None && !slices.ContainsFunc(c.acts, func(a roster.Act) bool {
		return c.after.view.Void[a.ID] == "" && (a.Kind == roster.Remove && a.Account == g.self.Account || a.Kind == roster.Leave && a.Author == g.self.Account)
	}) {
		// No act removed us: what let us in does not count.
		return g.tell(tx, News{Group: c.conv, Kind: NewsRemoved, Subject: g.self.Account})
	}
	return nil
}

func (g *Groups) tellAct(tx *storage.Tx, c *change, n News, at place) error {
	e, err := g.entry(tx, c.conv, at)
	if err == nil {
		n.Entry = &e
	} else if !errors.Is(err, replica.ErrNoEntry) {
		return err
	}
	return g.tell(tx, n)
}

// describe says what an act that counts does.
func describe(a *roster.Act) News {
	n := News{Account: a.Author, Subject: a.Account}
	switch a.Kind {
	case roster.Create:
		n.Kind = NewsCreated
	case roster.Admit:
		n.Kind = NewsAdmitted
	case roster.Leave:
		n.Kind, n.Subject = NewsLeft, a.Author
	case roster.Remove:
		n.Kind = NewsRemoved
	case roster.SetRole:
		n.Kind, n.Text = NewsRole, RoleName(a.Role)
	case roster.Transfer:
		n.Kind = NewsTransferred
	case roster.Set:
		n.Kind, n.Text = NewsSet, a.Key+"="+a.Value
	case roster.Nickname:
		n.Kind, n.Text = NewsNickname, a.Value
	case roster.NewEpoch:
		n.Kind = NewsEpoch
	case roster.Revoke:
		n.Kind, n.Text = NewsRevoked, a.Revoked.String()
	case roster.Dissolve:
		n.Kind = NewsDissolved
	}
	return n
}

// RoleName names a role: owner, admin, member, or nothing.
func RoleName(r Role) string {
	switch r {
	case roster.Owner:
		return "owner"
	case roster.Admin:
		return "admin"
	case roster.Member:
		return "member"
	}
	return ""
}

// settled runs after a change is on disk.
func (g *Groups) settled(c *change) {
	c.gr.committed(c.after.version)
	c.gr.mu.Lock()
	again := c.gr.refused
	c.gr.refused = false
	c.gr.mu.Unlock()
	moved := c.anew || c.before.view.Dissolved != c.after.view.Dissolved
	epochs := false
	for i := range c.acts {
		switch c.acts[i].Kind {
		case roster.NewEpoch:
			epochs = true
		case roster.Set, roster.Nickname:
		default:
			moved = true
		}
	}
	// Who may read what, or what may be taken, is another: sessions look anew.
	if moved || again {
		g.parts.Feeds.Reannounce(c.conv)
	}
	if moved || epochs {
		g.parts.Feeds.PushKeys(c.conv)
	}
	g.changed(c.conv)
}

// onChanged registers a function that is called after a commit that changed a group's acts, members, epochs or keys. It must
// not block. It is called before Run begins.
func (g *Groups) onChanged(f func(conv ID)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hooks = append(g.hooks, f)
}

func (g *Groups) changed(conv ID) {
	g.mu.Lock()
	hooks := g.hooks
	g.mu.Unlock()
	for _, f := range hooks {
		f(conv)
	}
}
