package groups

import (
	"bytes"
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// An own application may wait in several places that do not hear of each other: with those who were asked by another link before, and
// with the admins of both, where two show that they own the group. So it is kept whom one was said to and what they answered, and what has
// become of it follows from these alone, in whatever order they arrive on each of our devices. It waits as long as somebody may still
// let us in, and whoever takes it back takes it back everywhere.

const (
	// maxTold bounds the applications to one group that are remembered, each counted for everybody it was said to.
	maxTold = 64
	// maxToldTo is how many of them are of one account. The end of the last one ends those before it there, also what is not remembered.
	maxToldTo = 4
)

// toldRow is an application of ours that was said to somebody. It replaced the one before with them if they took it, which they may not
// have, by a link that was over.
type toldRow struct {
	Account identity.AccountID `json:"a"`
	Time    int64              `json:"t"` // of that application
	Expires int64              `json:"e"`
	// Owners are those under whose cards they are an admin, where several show that they own the group; empty: nobody disputes it.
	Owners []identity.AccountID `json:"o,omitempty"`
}

// answerRow is a no.
type answerRow struct {
	By      identity.AccountID `json:"b"`
	Time    int64              `json:"t"` // of the application
	Reason  string             `json:"r,omitempty"`
	Decided bool               `json:"d,omitempty"` // an admin turned it down; else only the link was over
	Of      identity.AccountID `json:"f,omitzero"`  // whose no they say it is; zero: their own
}

// told lists whom applications were said to. An earlier build kept whom the last one was.
func (r *groupRow) told() []toldRow {
	if len(r.Told) > 0 || r.Applied == nil || r.Applied.State == Rejected {
		return r.Told // what it kept as turned down waits for nobody
	}
	var out []toldRow
	for _, a := range r.Applied.To {
		out = append(out, toldRow{Account: a, Time: r.Applied.Time, Expires: r.Applied.Expires})
	}
	return out
}

// tell notes that an application was said to somebody.
func (r *groupRow) tell(t toldRow) {
	told := slices.DeleteFunc(slices.Clone(r.told()), func(o toldRow) bool { return o.Account == t.Account && o.Time != t.Time && r.over(o) })
	of, first := 0, -1
	for i, o := range told {
		if o.Account != t.Account {
			continue
		}
		if of++; o.Time == t.Time {
			r.Told = told
			return
		}
		if first < 0 || o.Time < told[first].Time {
			first = i
		}
	}
	if of >= maxToldTo {
		told = slices.Delete(told, first, first+1)
	}
	r.Told = append(told, t)
}

// untell forgets somebody to whom an application of a time, or an earlier one, was said to be taken back.
func (r *groupRow) untell(account identity.AccountID, at int64) {
	r.Told = slices.DeleteFunc(r.told(), func(t toldRow) bool { return t.Account == account && t.Time <= at })
}

// begin puts a new application in the place of the one before. With whom that one waits still, it goes on waiting.
func (r *groupRow) begin(app *applicationRow, now int64) {
	told := r.told()
	if r.Applied == nil || r.Applied.State == Withdrawn || r.Applied.State == Approved {
		told = nil
	}
	r.Told = slices.DeleteFunc(told, func(t toldRow) bool { return t.Expires <= now })
	r.Answers = slices.DeleteFunc(r.Answers, func(a answerRow) bool {
		return !slices.ContainsFunc(r.Told, func(t toldRow) bool { return t.Time <= a.Time })
	})
	r.Applied = app
}

// oldest takes out what there is no room to remember, what was said first.
func (r *groupRow) oldest() (out []toldRow) {
	for len(r.Told) > maxTold {
		i := 0
		for j := range r.Told {
			if r.Told[j].Time < r.Told[i].Time {
				i = j
			}
		}
		out = append(out, r.Told[i])
		r.Told = slices.Delete(r.Told, i, i+1)
	}
	return out
}

// asked tells whether somebody is one of those whom we asked to let us in.
func (r *groupRow) asked(account identity.AccountID) bool {
	return slices.ContainsFunc(r.Asks, func(c contactRow) bool { return c.Account == account }) ||
		slices.ContainsFunc(r.told(), func(t toldRow) bool { return t.Account == account })
}

// answer notes a no; false: it says nothing new.
func (r *groupRow) answer(a answerRow) bool {
	if app := r.Applied; app != nil && app.State == Rejected && len(r.Answers) == 0 && !app.By.IsZero() {
		r.Answers = []answerRow{{By: app.By, Time: app.Time, Reason: app.Reason, Decided: true}} // as an earlier build kept it
	}
	i := slices.IndexFunc(r.Answers, func(o answerRow) bool { return o.By == a.By && o.Time == a.Time })
	switch {
	case i < 0:
		if len(r.Answers) >= maxTold {
			r.Answers = slices.Delete(r.Answers, 0, 1)
		}
		r.Answers = append(r.Answers, a)
	case a.Decided && !r.Answers[i].Decided:
		r.Answers[i] = a
	default:
		return false
	}
	return true
}

// answered tells whether somebody whom an application was said to said no to it themselves: to that one, whose link was over, or to
// all up to a later one.
func (t toldRow) answered(a answerRow) bool {
	return a.By == t.Account && (a.Time == t.Time || a.Decided && a.Time > t.Time)
}

// over tells whether what was said to somebody comes to nothing any more: they said so themselves, or admins decided for every owner
// for whom they are one. The admins of one owner tell each other and believe each other, those of another may not.
func (r *groupRow) over(t toldRow) bool {
	var decided []identity.AccountID // the owners for whom somebody did
	undisputed := false
	for _, a := range r.Answers {
		if t.answered(a) {
			return true
		}
		if !a.Decided || a.Time < t.Time {
			continue
		}
		var owners []identity.AccountID
		for _, by := range r.told() {
			if by.Account == a.By {
				owners = append(owners, by.Owners...)
			}
		}
		decided, undisputed = append(decided, owners...), undisputed || len(owners) == 0
	}
	if len(t.Owners) == 0 {
		return undisputed
	}
	return !slices.ContainsFunc(t.Owners, func(o identity.AccountID) bool { return !slices.Contains(decided, o) })
}

// open lists who may still let us in.
func (r *groupRow) open(now int64) (out []toldRow) {
	for _, t := range r.told() {
		if t.Expires > now && !r.over(t) {
			out = append(out, t)
		}
	}
	return out
}

// until is when the last of them cannot any more; 0: nobody can.
func (r *groupRow) until(now int64) (at int64) {
	for _, t := range r.open(now) {
		at = max(at, t.Expires)
	}
	return at
}

// lapsed tells whether an application of ours waits for nobody any more because its time is over.
func (r *groupRow) lapsed(now int64) bool {
	return r.Applied != nil && r.Applied.State == Waiting && (r.Applied.Expires <= now || len(r.told()) > 0) && r.until(now) == 0
}

// settle draws from what was said what has become of our application.
func (r *groupRow) settle(now int64) {
	app := r.Applied
	if app == nil || app.State != Waiting && app.State != Rejected {
		return
	}
	if len(r.open(now)) > 0 {
		// Turned down before this device heard who was asked besides, perhaps.
		app.State, app.Reason, app.By = Waiting, "", identity.AccountID{}
		if r.State == StateRejected {
			r.State = StateApplied
		}
		return
	}
	if len(r.Answers) == 0 {
		return
	}
	why := r.why()
	app.State, _ = advance(anApplication, Waiting, refuse, decider)
	if app.Reason, app.By = why.Reason, (identity.AccountID{}); why.Decided {
		app.By = why.By
	}
	if r.State == StateApplied {
		r.State = StateRejected
	}
}

// why picks, of those who said no, whose word is shown for all: what was decided before what was over, then what is said
// of the latest application, then by account, so that all own devices show the same, in whatever order they heard. There is one.
func (r *groupRow) why() answerRow {
	return slices.MinFunc(r.Answers, func(a, b answerRow) int {
		x, y := a.Decided && !r.repeated(a), b.Decided && !r.repeated(b)
		switch {
		case x && !y:
			return -1
		case y && !x:
			return 1
		}
		return cmp.Or(cmp.Compare(b.Time, a.Time), bytes.Compare(a.By[:], b.By[:]))
	})
}

// takeBackFrom says to some that an application of ours of a time is taken back. Whoever said no has nothing that waits.
func (g *Groups) takeBackFrom(tx *storage.Tx, conv ID, row *groupRow, to []toldRow, at int64) error {
	content, err := proto.Marshal(&pb.GroupApplication{Group: conv[:], ApplicationMs: at})
	if err != nil {
		return err
	}
	done := map[identity.AccountID]bool{}
	for _, t := range to {
		if done[t.Account] || slices.ContainsFunc(row.Answers, t.answered) {
			continue
		}
		done[t.Account] = true
		if _, err := g.sayIfHeard(tx, t.Account, feed.KindGroupApplication, content); err != nil {
			return err
		}
	}
	return nil
}

// repeated tells whether a no is somebody else's, who said it to us themselves. Nobody's word is taken for what another decided: of
// whom we did not hear it, it is a no of whoever passed it on.
func (r *groupRow) repeated(a answerRow) bool {
	return !a.Of.IsZero() && slices.ContainsFunc(r.Answers, func(o answerRow) bool {
		return o.By == a.Of && o.Of.IsZero() && o.Decided && o.Time == a.Time
	})
}

// answers lists who said no, as the applicant is shown.
func (r *groupRow) answers() []Answer {
	var out []Answer
	for _, a := range r.Answers {
		if r.repeated(a) {
			continue
		}
		no := Answer{By: a.By, Reason: a.Reason, Decided: a.Decided}
		i := slices.IndexFunc(out, func(o Answer) bool { return o.By == a.By })
		switch {
		case i < 0:
			out = append(out, no)
		case a.Decided || !out[i].Decided:
			out[i] = no // the last, but what was decided says more than what was over
		}
	}
	return out
}
