package groups

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Apply asks to be let into a group, of those whom a link, a card or a search result names.
func (g *Groups) Apply(ctx context.Context, t Target, message string) (Info, error) {
	var info Info
	err := g.do(ctx, "applying", func(tx *storage.Tx) error {
		row, known, err := getRow[groupRow](tx, groupKey(t.Group))
		if err != nil {
			return err
		}
		asks := packContacts(slices.DeleteFunc(slices.Clone(t.Asks), func(c Contact) bool { return c.Account == g.self.Account }))
		if known && len(asks) == 0 {
			if asks, err = g.acquainted(tx, t.Group, row); err != nil {
				return err
			}
		}
		switch {
		case known && !outside(row.State):
			return ErrExists
		case t.Group.IsZero() || len(asks) == 0 || len(t.Name) > MaxName || len(t.Token) != 0 && len(t.Token) != len(identity.InviteToken{}):
			return ErrInvalid
		case t.Join == "invite" && len(t.Token) == 0:
			return ErrNotAllowed
		}
		at := g.now()
		if row.Applied != nil {
			// An application is named by its time, and of two the later counts, also if the clock was put back in between.
			if last := atMS(row.Applied.Time); !at.After(last) && last.Sub(at) < maxAhead {
				at = last.Add(time.Millisecond)
			}
		}
		c, err := g.consents(t.Group, true, message, at)
		if err != nil {
			return err
		}
		app := applicationRow{Message: message, Time: c.Time.UnixMilli(), Expires: c.Expires.UnixMilli(), ByLink: len(t.Token) > 0}
		app.State, _ = advance(anApplication, "", ask, candidate)
		row.begin(&app, g.now().UnixMilli())
		var deaf error
		for _, a := range asks {
			if err := g.applyTo(tx, &row, t, a.Account, c); err != nil {
				if !unfit(err) {
					return err
				}
				deaf = err
			}
		}
		if deaf != nil && !slices.ContainsFunc(row.Told, func(o toldRow) bool { return o.Time == app.Time }) {
			return deaf // nobody can be asked
		}
		for _, old := range row.oldest() {
			if err := g.takeBackFrom(tx, t.Group, &row, []toldRow{old}, old.Time); err != nil {
				return err
			}
		}
		if row.State != StateJoining {
			row.State = StateApplied
		}
		if !known {
			row.Began = g.now().UnixMilli()
		}
		if t.Name != "" {
			row.Name = t.Name
		}
		row.Ours = true
		row.Join, row.Asks = t.Join, mergeAsks(asks, row.Asks)
		if err := putRow(tx, groupKey(t.Group), row); err != nil {
			return err
		}
		if err := g.shareWith(tx, t.Group, row.Asks); err != nil {
			return err
		}
		info, err = g.Info(tx, t.Group)
		return err
	})
	return info, err
}

// acquainted are those of a group that we are not in whom we can ask: whom we asked before, or who decided there when we went.
func (g *Groups) acquainted(tx *storage.Tx, conv ID, row groupRow) ([]contactRow, error) {
	if len(row.Asks) > 0 {
		return row.Asks[:min(len(row.Asks), identity.MaxGroupContacts)], nil
	}
	_, s, err := g.open(tx, conv, false)
	if err != nil {
		return nil, err
	}
	var out []contactRow
	for _, c := range g.asks(s)[1:] { // strongest first, behind ourselves
		if s.view.Role(c.Account) >= roster.Admin {
			out = append(out, packContacts([]Contact{c})...)
		}
	}
	return out, nil
}

// applyTo says an application to one of those who are asked. For whom they are an admin is said along, for our other devices: a no of one
// side of a disputed group is none of the other.
func (g *Groups) applyTo(tx *storage.Tx, row *groupRow, t Target, to identity.AccountID, c identity.Consent) error {
	m := &pb.GroupApplication{Group: t.Group[:], Consent: c.Raw(), Token: t.Token}
	owners := t.Owners[to][:min(len(t.Owners[to]), maxOwners)]
	for _, o := range owners {
		m.Owners = append(m.Owners, o[:])
	}
	content, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if err := g.say(tx, to, feed.KindGroupApplication, content); err != nil {
		return err
	}
	row.tell(toldRow{Account: to, Time: c.Time.UnixMilli(), Expires: c.Expires.UnixMilli(), Owners: owners})
	return nil
}

// maxOwners is how many who show that they own a group are told apart.
const maxOwners = 4

// WithdrawApplication takes our application back, and what waits of those before it, everywhere they were said.
func (g *Groups) WithdrawApplication(ctx context.Context, conv ID) error {
	return g.do(ctx, "withdrawing an application", func(tx *storage.Tx) error {
		row, ok, err := getRow[groupRow](tx, groupKey(conv))
		if err != nil {
			return err
		}
		if !ok || row.Applied == nil {
			return ErrNotFound
		}
		to, may := advance(anApplication, row.Applied.State, takeBack, candidate)
		if !may {
			return ErrNotFound
		}
		// The end of the last one ends those before it with whoever has not heard of it.
		if err := g.takeBackFrom(tx, conv, &row, row.told(), row.Applied.Time); err != nil {
			return err
		}
		row.Applied.State, row.Told, row.Answers = to, nil, nil
		if row.State == StateApplied {
			row.State = row.idle()
		}
		return putRow(tx, groupKey(conv), row)
	})
}

// Applications lists who asks to be let into a group, of the zero ID into any, and our own applications.
func (g *Groups) Applications(tx *storage.Tx, conv ID) ([]Application, error) {
	prefix := []byte(keyApply)
	if !conv.IsZero() {
		prefix = key(keyApply, conv[:])
	}
	var out []Application
	add := func(group ID, account identity.AccountID, row applicationRow, name string) *Application {
		a := Application{
			Group: group, GroupName: name, Account: account, Own: account == g.self.Account, Message: row.Message, Time: atMS(row.Time),
			Expires: atMS(row.Expires), State: row.State, Reason: row.Reason, By: row.By, ByLink: row.ByLink,
		}
		if a.State == Waiting && !g.now().Before(a.Expires) {
			a.State = Expired
		}
		out = append(out, a)
		return &out[len(out)-1]
	}
	err := eachRow(tx, prefix, func(rest []byte, row applicationRow) (bool, error) {
		at := append(slices.Clone(prefix[len(keyApply):]), rest...)
		if len(at) != 64 {
			return false, fmt.Errorf("listing applications: %w", errRow)
		}
		add(ID(at[:32]), identity.AccountID(at[32:]), row, row.Name)
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	err = eachRow(tx, []byte(keyGroup), func(rest []byte, row groupRow) (bool, error) {
		if id := ID(rest); row.Applied != nil && (conv.IsZero() || id == conv) {
			a := add(id, g.self.Account, *row.Applied, row.Name)
			a.Answers = row.answers()
			if now := g.now().UnixMilli(); row.lapsed(now) {
				a.State = Expired
			} else if until := row.until(now); row.Applied.State == Waiting && until != 0 {
				a.State, a.Expires = Waiting, atMS(until)
			}
		}
		return true, nil
	})
	return out, err
}

// countApplications is how many wait for us to decide.
func (g *Groups) countApplications(tx *storage.Tx, conv ID) (n int, err error) {
	now := g.now().UnixMilli()
	err = eachRow(tx, key(keyApply, conv[:]), func(_ []byte, row applicationRow) (bool, error) {
		if row.State == Waiting && now < row.Expires {
			n++
		}
		return true, nil
	})
	return n, err
}

// Decide approves an application, or turns it down with a reason. ErrConflict: it does not wait any more; what became of it comes with
// the error.
func (g *Groups) Decide(ctx context.Context, conv ID, account identity.AccountID, approve bool, reason string) (Application, error) {
	var out Application
	err := g.do(ctx, "deciding an application", func(tx *storage.Tx) (err error) {
		if len(reason) > MaxReason {
			return ErrInvalid
		}
		out, err = g.decide(tx, conv, account, approve, reason)
		return err
	})
	return out, err
}

func (g *Groups) decide(tx *storage.Tx, conv ID, account identity.AccountID, approve bool, reason string) (Application, error) {
	k := applyKey(conv, account)
	s, err := g.standing(tx, conv)
	if err != nil {
		return Application{}, err
	}
	if !g.mayLetIn(s, true) {
		return Application{}, ErrNotAllowed
	}
	row, ok, err := getRow[applicationRow](tx, k)
	if err != nil {
		return Application{}, err
	}
	do := refuse
	if approve {
		do = agree
	}
	to, may := advance(anApplication, row.State, do, decider)
	switch {
	case !ok:
		return Application{}, ErrNotFound
	case !may:
		return s.application(conv, account, row), fmt.Errorf("it is %s: %w", row.State, ErrConflict)
	case g.now().UnixMilli() >= row.Expires:
		return Application{}, ErrExpired
	}
	consent := row.Consent
	row.State, row.Reason, row.Consent = to, reason, nil
	if !approve {
		row.By = g.self.Account
	}
	if err := putRow(tx, k, row); err != nil {
		return Application{}, err
	}
	if approve {
		c, err := g.consentOf(consent, conv, account, true)
		if err == nil {
			err = g.admit(tx, conv, c)
		}
		if err != nil && !errors.Is(err, ErrExists) {
			return Application{}, err
		}
	} else if err := g.reject(tx, s, conv, account, row); err != nil {
		return Application{}, err
	}
	return s.application(conv, account, row), nil
}

// application shows a row to those who decide.
func (s *snapshot) application(conv ID, account identity.AccountID, row applicationRow) Application {
	return Application{
		Group: conv, GroupName: s.view.Settings[roster.SettingName], Account: account, Message: row.Message, Time: atMS(row.Time),
		Expires: atMS(row.Expires), State: row.State, Reason: row.Reason, By: row.By, ByLink: row.ByLink,
	}
}

// saidApplication takes an application, one taken back, one that an admin hands on, or what another own device did.
func (g *Groups) saidApplication(tx *storage.Tx, from, to identity.AccountID, content []byte) error {
	var m pb.GroupApplication
	if err := proto.Unmarshal(content, &m); err != nil || len(m.Group) != 32 || len(m.Token) != 0 && len(m.Token) != 16 {
		return fmt.Errorf("reading an application: %w", ErrInvalid)
	}
	conv := ID(m.Group)
	if from == g.self.Account {
		return g.appliedElsewhere(tx, conv, to, &m)
	}
	if len(m.Consent) == 0 {
		return g.unapplied(tx, conv, from, m.ApplicationMs)
	}
	c, err := identity.ParseConsent(m.Consent)
	if err != nil {
		return err
	}
	s, err := g.standing(tx, conv)
	if err != nil {
		return err
	}
	handedOn := c.Account != from && s.view.Role(from) >= roster.Admin
	if _, err := g.consentOf(m.Consent, conv, c.Account, true); err != nil || c.Account != from && !handedOn {
		return errors.Join(err, ErrInvalid)
	}
	if s.view.Role(c.Account) != roster.None {
		return nil
	}
	live, over, err := g.liveToken(tx, conv, m.Token, c.Account)
	if err != nil {
		return err
	}
	if s.view.Settings[roster.SettingJoin] == "invite" && !live && !handedOn {
		if over != "" && g.mayLetIn(s, true) {
			return g.sayOver(tx, conv, c, over)
		}
		return fmt.Errorf("an application to a closed group: %w", ErrNotAllowed)
	}
	if !g.mayLetIn(s, true) {
		return nil // nor would anybody believe us what somebody applied for
	}
	arrived := arrivedBy{live: live, from: from}
	if live {
		arrived.token = m.Token
	}
	return g.applied(tx, conv, s, c, arrived)
}

// arrivedBy is how an application came.
type arrivedBy struct {
	live  bool               // by a link that is live
	token []byte             // of that link
	from  identity.AccountID // the applicant, or the admin who handed it on
}

// applied keeps an application that we may decide. In an open group it is decided by that.
func (g *Groups) applied(tx *storage.Tx, conv ID, s *snapshot, c identity.Consent, by arrivedBy) error {
	k := applyKey(conv, c.Account)
	before, again, err := getRow[applicationRow](tx, k)
	handedOn := by.from != c.Account
	if err != nil || again && before.Time >= c.Time.UnixMilli() && before.State != "" {
		if err != nil || before.Time > c.Time.UnixMilli() {
			return err
		}
		return g.saidAgain(tx, conv, c.Account, before, by) // known, and perhaps decided
	}
	limit := g.cfg.Limits.Applications
	if by.live || handedOn {
		limit *= 2 // strangers alone do not use up all the room
	}
	if n, err := g.countApplications(tx, conv); err != nil || n >= limit {
		return errors.Join(err, fmt.Errorf("an application: %w", ErrFull))
	}
	if err := g.trimApplications(tx, conv); err != nil {
		return err
	}
	row := applicationRow{
		Consent: c.Raw(), Message: c.Message, Time: c.Time.UnixMilli(), Expires: c.Expires.UnixMilli(), ByLink: by.live,
		Name: s.view.Settings[roster.SettingName], Direct: !handedOn,
	}
	if handedOn {
		row.from(by.from)
	}
	row.State, _ = advance(anApplication, before.State, ask, candidate)
	if err := putRow(tx, k, row); err != nil {
		return err
	}
	if by.live {
		if err := g.useLink(tx, conv, by.token, c.Account); err != nil {
			return err
		}
	}
	if s.view.Settings[roster.SettingJoin] == "open" && g.mayAutomatically(conv) {
		err := g.admit(tx, conv, c)
		if err == nil || errors.Is(err, ErrExists) {
			return nil
		}
		if !errors.Is(err, ErrNotAllowed) && !errors.Is(err, ErrReadOnly) {
			return err
		}
	}
	if err := g.tell(tx, News{Group: conv, Kind: NewsApplication, Account: c.Account, Subject: c.Account, Text: c.Message}); err != nil {
		return err
	}
	if handedOn {
		return nil
	}
	told, err := g.handOn(tx, s, conv, c, by.token)
	if err != nil || told > 0 {
		return err
	}
	// Its end is told to those who were told of one before.
	row.Alone = !again || before.Alone || before.State != Waiting
	return putRow(tx, k, row)
}

// saidAgain notes who else told us of an application that is known. If another admin had turned it down before it came, the applicant
// hears that from us now.
func (g *Groups) saidAgain(tx *storage.Tx, conv ID, account identity.AccountID, row applicationRow, by arrivedBy) error {
	if by.from != account {
		if row.from(by.from) {
			return putRow(tx, applyKey(conv, account), row)
		}
		return nil
	}
	if row.Direct {
		return nil
	}
	row.Direct = true
	return errors.Join(putRow(tx, applyKey(conv, account), row), g.passOn(tx, conv, account, row))
}

// mayAutomatically bounds how many are let in by nobody's decision: each costs the group an act for ever. The rest wait for
// somebody to decide.
func (g *Groups) mayAutomatically(conv ID) bool {
	n := float64(g.cfg.Limits.Automatic)
	ok, _ := g.rates.take(rateKey{conv: conv, account: g.self.Account, control: true}, 1, n/3600, n, g.now())
	return ok
}

func (g *Groups) appliedElsewhere(tx *storage.Tx, conv ID, to identity.AccountID, m *pb.GroupApplication) error {
	row, known, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || known && !outside(row.State) {
		return err // or an own device hands on what somebody applied for
	}
	if len(m.Consent) == 0 {
		switch {
		case row.Applied != nil && m.ApplicationMs != 0 && row.Applied.Time > m.ApplicationMs:
			row.untell(to, m.ApplicationMs)
			row.settle(g.now().UnixMilli())        // others may all have said no
			return putRow(tx, groupKey(conv), row) // what is applied for now is another
		case m.ApplicationMs > 0 && (row.Applied == nil || row.Applied.Time < m.ApplicationMs):
			// A third device applied, of which we hear later.
			row.Applied = &applicationRow{Time: m.ApplicationMs, Expires: m.ApplicationMs + g.cfg.Limits.Invitation.Milliseconds()}
		case row.Applied == nil:
			return nil
		}
		row.Applied.State, row.Told, row.Answers = Withdrawn, nil, nil
		if row.State == StateApplied || row.State == StateRejected || !known {
			row.State = row.idle()
		}
		return putRow(tx, groupKey(conv), row)
	}
	c, err := g.consentOf(m.Consent, conv, g.self.Account, true)
	if err != nil {
		return err
	}
	app, now := &applicationRow{Message: c.Message, Time: c.Time.UnixMilli(), Expires: c.Expires.UnixMilli(), State: Waiting, ByLink: len(m.Token) > 0}, g.now().UnixMilli()
	told := toldRow{Account: to, Time: app.Time, Expires: app.Expires}
	for _, o := range m.Owners[:min(len(m.Owners), maxOwners)] {
		if a, err := identity.AccountIDFromBytes(o); err == nil {
			told.Owners = append(told.Owners, a)
		}
	}
	if row.Applied == nil || row.Applied.Time < app.Time {
		row.begin(app, now)
	} // else it is the same, said to another admin, or an earlier one
	if s := row.Applied.State; s == Waiting || s == Rejected {
		row.tell(told)
		row.oldest()
	}
	row.settle(now)
	if row.State != StateJoining && row.Applied.State == Waiting {
		row.State = StateApplied
	}
	row.Asks = mergeAsks(row.Asks, []contactRow{{Account: to}})
	if err := putRow(tx, groupKey(conv), row); err != nil {
		return err
	}
	if err := g.refusedBefore(tx, conv, to); err != nil {
		return err
	}
	return g.shareWith(tx, conv, row.Asks)
}
