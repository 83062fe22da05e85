package groups

import (
	"cmp"
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

// What became of an application is known in pieces: to the admin who turned it down, to those whom the applicant told that it is
// taken back, and to everybody by the act that lets somebody in. Here the pieces come together, in whatever order they arrive: an
// application is named by its time, the newest one counts, it ends once, and an act beats whatever was said.

const (
	// maxHandedOn is to how many other admins an application is handed on, so that any of them decides.
	maxHandedOn = 4
	// maxToldOf is how many other admins are told how one ended. They are more, because the applicant may have asked some of whom
	// this one knows nothing; each costs an entry for ever.
	maxToldOf = 16
	// maxAhead is how far ahead of this clock an application may be that is told of: what is said of a later one would stand in the way of all
	// those that the applicant makes until then.
	maxAhead = 24 * time.Hour
)

// ending is how an application ended besides an act.
type ending struct {
	do     deed
	actor  actor
	by     identity.AccountID // who turned it down
	time   int64              // of the application; 0: the one that waits
	reason string
	told   bool // by somebody who knows which one it was, so that it is kept ahead of the application
}

// turnedDown is an application that an admin turned down.
func turnedDown(by identity.AccountID, at int64, reason string) ending {
	return ending{do: refuse, actor: decider, by: by, time: at, reason: reason, told: at != 0}
}

// takenBack is one that the applicant took back.
func takenBack(at int64) ending {
	return ending{do: takeBack, actor: candidate, time: at, told: at != 0}
}

// end notes how an application ended that we may decide, or will hear of. That changes nothing if it ended before, they applied again
// since, or are in. Waited tells whether one waited here, that one or an earlier one, of which nobody wants to hear any more.
func (g *Groups) end(tx *storage.Tx, conv ID, account identity.AccountID, e ending) (row applicationRow, waited bool, err error) {
	k := applyKey(conv, account)
	row, ok, err := getRow[applicationRow](tx, k)
	if err != nil || ok && e.time != 0 && row.Time > e.time {
		return row, false, err
	}
	waited = ok && row.State == Waiting
	if !ok || e.time > row.Time {
		s, err := g.standing(tx, conv)
		if err != nil || !e.told || s.view.Role(account) != roster.None {
			return row, false, err
		}
		if e.time < 0 || e.time > g.now().Add(maxAhead).UnixMilli() {
			return row, false, fmt.Errorf("the end of an application: %w", ErrInvalid)
		}
		// Kept for when the application itself comes: it is over then, and nobody is asked to decide it.
		if err := g.trimApplications(tx, conv); err != nil {
			return row, false, err
		}
		row = applicationRow{
			Time: e.time, Expires: e.time + g.cfg.Limits.Invitation.Milliseconds(), State: Waiting, Name: s.view.Settings[roster.SettingName],
			From: row.From, Direct: row.Direct, Alone: row.Alone,
		}
	}
	to, may := advance(anApplication, row.State, e.do, e.actor)
	if !may {
		return row, false, nil
	}
	row.State, row.Reason, row.By, row.Consent = to, e.reason, e.by, nil
	return row, waited, putRow(tx, k, row)
}

// trimApplications makes room for one more. Those that ended go first.
func (g *Groups) trimApplications(tx *storage.Tx, conv ID) error {
	return trim(tx, key(keyApply, conv[:]), 4*g.cfg.Limits.Applications, func(row applicationRow) (bool, int64) {
		return row.State != Waiting, row.Time
	})
}

// handOn tells other admins of an application that was said to us, and how many of them. What came along besides is not said again: it may
// be anything.
func (g *Groups) handOn(tx *storage.Tx, s *snapshot, conv ID, c identity.Consent, token []byte) (told int, err error) {
	content, err := proto.Marshal(&pb.GroupApplication{Group: conv[:], Consent: c.Raw(), Token: token})
	if err != nil {
		return 0, err
	}
	n := 0
	for _, p := range s.view.People { // strongest first
		if p.Role < roster.Admin || n == maxHandedOn {
			break
		}
		if p.Account == g.self.Account {
			continue
		}
		if !g.mayHandOn(p.Account, content) {
			n++
			continue
		}
		said, err := g.sayIfHeard(tx, p.Account, feed.KindGroupApplication, content)
		if err != nil {
			return told, err
		}
		if said {
			n, told = n+1, told+1
		}
	}
	return told, nil
}

// mayHandOn bounds how much of what strangers ask goes from this device to another admin, to half of what that one hears of an admin who is
// no contact: what was decided must not stand behind it for days. The rest waits with whoever was asked.
func (g *Groups) mayHandOn(to identity.AccountID, content []byte) bool {
	const burst, perDay = 128 << 10, 512 << 10
	weight := 1500 // of an entry with a body of 1 KiB
	if len(content) > 1000 {
		weight = 4500
	}
	ok, _ := g.rates.take(rateKey{account: to, handedOn: true}, weight, perDay/86400.0, burst, g.now())
	return ok
}

// tellAdmins says something to the strongest other admins, and to those named besides who still are. Only admins are believed to.
func (g *Groups) tellAdmins(tx *storage.Tx, s *snapshot, most int, besides []identity.AccountID, kind feed.Kind, content []byte) error {
	if s.view.Role(g.self.Account) < roster.Admin {
		return nil
	}
	n := 0
	for _, p := range s.view.People { // strongest first
		if p.Role < roster.Admin {
			break
		}
		if p.Account == g.self.Account || n >= most && !slices.Contains(besides, p.Account) {
			continue
		}
		said, err := g.sayIfHeard(tx, p.Account, kind, content)
		if err != nil {
			return err
		}
		if said {
			n++
		}
	}
	return nil
}

// reject tells an applicant that we turned them down, and the other admins, so that none of them goes on deciding. Members learn
// nothing: that somebody applied is not theirs to know.
func (g *Groups) reject(tx *storage.Tx, s *snapshot, conv ID, account identity.AccountID, row applicationRow) error {
	content, err := verdictOn(conv, account, row)
	if err != nil {
		return err
	}
	if _, err := g.sayIfHeard(tx, account, feed.KindGroupVerdict, content); err != nil {
		return err
	}
	return g.tellAdmins(tx, s, maxToldOf, row.From, feed.KindGroupVerdict, content)
}

func verdictOn(conv ID, account identity.AccountID, row applicationRow) ([]byte, error) {
	return proto.Marshal(&pb.GroupVerdict{Group: conv[:], Reason: row.Reason, Account: account[:], ApplicationMs: row.Time})
}

// passOn tells an applicant what another admin decided: who asked us, for instance by our link, listens to us and perhaps not to them.
func (g *Groups) passOn(tx *storage.Tx, conv ID, account identity.AccountID, row applicationRow) error {
	if !row.Direct || row.State != Rejected || row.By == g.self.Account || row.By.IsZero() || slices.Contains(row.From, row.By) {
		return nil // whoever handed it on was asked too, and has told them
	}
	content, err := proto.Marshal(&pb.GroupVerdict{Group: conv[:], Reason: row.Reason, Account: account[:], ApplicationMs: row.Time, By: row.By[:]})
	if err != nil {
		return err
	}
	_, err = g.sayIfHeard(tx, account, feed.KindGroupVerdict, content)
	return err
}

// sayOver tells an applicant that the link they came by is over. That is nobody's decision, and concerns no other admin.
func (g *Groups) sayOver(tx *storage.Tx, conv ID, c identity.Consent, reason string) error {
	content, err := proto.Marshal(&pb.GroupVerdict{Group: conv[:], Reason: reason, ApplicationMs: c.Time.UnixMilli()})
	if err != nil {
		return err
	}
	_, err = g.sayIfHeard(tx, c.Account, feed.KindGroupVerdict, content)
	return err
}

// unapplied takes that somebody took their application back, and lets those know whom we handed it on to.
func (g *Groups) unapplied(tx *storage.Tx, conv ID, from identity.AccountID, at int64) error {
	s, err := g.standing(tx, conv)
	if err != nil {
		return err
	}
	e := takenBack(at)
	e.told = e.told && g.mayLetIn(s, true)
	row, waited, err := g.end(tx, conv, from, e)
	if err != nil || !waited {
		return err
	}
	if err := g.tell(tx, News{Group: conv, Kind: NewsApplicationWithdrawn, Account: from, Subject: from}); err != nil || row.Alone {
		return err
	}
	content, err := proto.Marshal(&pb.GroupVerdict{Group: conv[:], Account: from[:], ApplicationMs: row.Time, Withdrawn: true})
	if err != nil {
		return err
	}
	return g.tellAdmins(tx, s, maxHandedOn, nil, feed.KindGroupVerdict, content)
}

// letIn settles what was under way with somebody who is in now.
func (g *Groups) letIn(tx *storage.Tx, c *change, account identity.AccountID) error {
	k := applyKey(c.conv, account)
	app, ok, err := getRow[applicationRow](tx, k)
	if err != nil {
		return err
	}
	if to, may := c.approved(app, account); ok && may {
		app.State, app.Reason, app.By, app.Consent = to, "", identity.AccountID{}, nil
		if err := putRow(tx, k, app); err != nil {
			return err
		}
		if err := g.tell(tx, News{Group: c.conv, Kind: NewsApproved, Subject: account}); err != nil {
			return err
		}
	}
	k = inviteKey(outgoing, c.conv, account)
	in, ok, err := getRow[invitationRow](tx, k)
	if to, may := advance(anInvitation, in.State, agree, candidate); err == nil && ok && may {
		in.State = to
		err = putRow(tx, k, in)
	}
	return err
}

// approved gives the state of an application of somebody who is in now. The act counts, whatever was said: somebody approved who had not
// heard that another admin turned it down, or that it was taken back. Who came in by an invitation is no such case.
func (c *change) approved(app applicationRow, account identity.AccountID) (string, bool) {
	if to, may := advance(anApplication, app.State, agree, decider); may {
		return to, true
	}
	p, ok := person(&c.after.view, account)
	if !ok {
		return "", false
	}
	c.gr.mu.Lock()
	a, ok := c.gr.roster.Act(p.Admitted)
	ok = ok && a.Applied
	c.gr.mu.Unlock()
	if !ok {
		return "", false
	}
	return advance(anApplication, app.State, enter, act)
}

// saidVerdict takes a refusal of what we asked for, how an application ended that another admin tells us of, or what another own
// device said.
func (g *Groups) saidVerdict(tx *storage.Tx, from, to identity.AccountID, content []byte) error {
	var m pb.GroupVerdict
	if err := proto.Unmarshal(content, &m); err != nil || len(m.Group) != 32 || len(m.Reason) > MaxReason || len(m.Account) != 0 && len(m.Account) != 32 {
		return fmt.Errorf("reading a verdict: %w", ErrInvalid)
	}
	conv, account := ID(m.Group), to
	if len(m.Account) > 0 {
		account = identity.AccountID(m.Account)
	}
	own, v := from == g.self.Account, verdictRow{Time: m.ApplicationMs, Reason: m.Reason, Decided: len(m.Account) > 0, Withdrawn: m.Withdrawn}
	if len(m.By) == 32 {
		v.Of = identity.AccountID(m.By)
	}
	if account == g.self.Account {
		if own || m.Withdrawn {
			return fmt.Errorf("a verdict of our own: %w", ErrInvalid)
		}
		return g.refused(tx, conv, from, v)
	}
	s, err := g.standing(tx, conv)
	switch {
	case errors.Is(err, ErrNotMember):
		// Somebody who is an admin may take us for one, too, and we have not heard of either.
		if row, _, err := getRow[groupRow](tx, groupKey(conv)); err != nil || row.State != StateJoining && row.State != StateApplied {
			return errors.Join(err, ErrNotMember)
		}
		return g.keepVerdict(tx, conv, from, account, v)
	case err != nil:
		return err
	case !own && (s.view.Role(from) < roster.Admin || s.view.Role(g.self.Account) < roster.Admin):
		return g.keepVerdict(tx, conv, from, account, v)
	}
	return g.judged(tx, conv, from, account, v)
}

// judged takes the word of an admin, or of another own device, on how somebody's application ended.
func (g *Groups) judged(tx *storage.Tx, conv ID, from, account identity.AccountID, v verdictRow) error {
	e, news := turnedDown(from, v.Time, v.Reason), News{Group: conv, Kind: NewsRejected, Account: from, Subject: account, Text: v.Reason}
	if v.Withdrawn {
		e, news = takenBack(v.Time), News{Group: conv, Kind: NewsApplicationWithdrawn, Account: account, Subject: account}
	}
	e.told = e.told && v.Decided // else nobody decided: a link was over
	row, waited, err := g.end(tx, conv, account, e)
	if err != nil || !waited || from == g.self.Account {
		return err
	}
	if err := g.passOn(tx, conv, account, row); err != nil {
		return err
	}
	return g.tell(tx, news)
}

// refused takes a refusal of what we asked for.
func (g *Groups) refused(tx *storage.Tx, conv ID, from identity.AccountID, v verdictRow) error {
	row, ok, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || ok && !outside(row.State) {
		return err // in already, by whoever approved
	}
	asked := ok && row.asked(from)
	switch {
	case v.Time != 0 && (row.Applied == nil || row.Applied.Time < v.Time || !asked):
		return g.keepVerdict(tx, conv, from, g.self.Account, v) // that another own device asked them, this one may hear later
	case !asked:
		return fmt.Errorf("a verdict on nothing: %w", ErrNotFound)
	}
	news := News{Group: conv, Kind: NewsRejected, Account: from, Subject: g.self.Account, Text: v.Reason}
	now, state := g.now().UnixMilli(), row.State
	switch {
	case v.Time == 0 && state == StateJoining:
		// What came of an invitation that we accepted. An application may wait besides.
		if row.State = StateRejected; row.Applied != nil && row.Applied.State == Waiting && !row.lapsed(now) {
			row.State = StateApplied
		}
	case row.Applied == nil || row.Applied.State != Waiting && row.Applied.State != Rejected:
		return fmt.Errorf("a verdict on nothing: %w", ErrNotFound)
	default:
		waited, could := row.Applied.State == Waiting, len(row.open(now))
		a := answerRow{By: from, Time: cmp.Or(v.Time, row.Applied.Time), Reason: v.Reason, Decided: v.Decided, Of: v.Of}
		switch fresh := row.answer(a); {
		case fresh && a.Time < row.Applied.Time && len(row.open(now)) == could:
			return g.keepVerdict(tx, conv, from, g.self.Account, v) // perhaps on one that another own device made, of which this one hears later
		case !fresh:
			return fmt.Errorf("a verdict on nothing: %w", ErrNotFound)
		}
		// An invitation that was accepted is not ended by what becomes of an application.
		row.settle(now)
		if row.Applied.State == Waiting {
			news.Kind = NewsApplicationAnswered
		} else if !waited {
			return putRow(tx, groupKey(conv), row) // it was over before
		}
	}
	if err := putRow(tx, groupKey(conv), row); err != nil {
		return err
	}
	return g.tell(tx, news)
}

// refusedBefore takes the verdicts that came ahead of the application that an own device said to somebody.
func (g *Groups) refusedBefore(tx *storage.Tx, conv ID, by identity.AccountID) error {
	row, _, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || row.Applied == nil {
		return err
	}
	var all []verdictRow
	prefix := verdictKey(by, conv, g.self.Account)
	err = eachRow(tx, prefix, func(rest []byte, v verdictRow) (bool, error) { // an earlier build kept the last one alone
		if v.Time > row.Applied.Time {
			return true, nil
		}
		all = append(all, v)
		return true, tx.Delete(append(slices.Clone(prefix), rest...))
	})
	for i := 0; err == nil && i < len(all); i++ { // by time
		if err = g.refused(tx, conv, by, all[i]); unfit(err) {
			err = nil // it is over otherwise
		}
	}
	return err
}
