package main

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"hima/groups"
	"hima/internal/feed"
	"hima/internal/messenger"
	"hima/storage"
)

// tallies notes every time that a chat entry became durable at a member, and what was said by whom and when.
type tallies struct {
	t *testing.T
	c *club

	mu    sync.Mutex // guards what follows
	at    map[feed.EntryID]map[*member][]time.Time
	epoch map[feed.EntryID]string
	said  []spoken
}

// spoken is one message.
type spoken struct {
	id feed.EntryID
	by *member
	at time.Time
}

// newTallies watches all who are members of the club, or will be.
func newTallies(t *testing.T, c *club, who []*member) *tallies {
	a := &tallies{t: t, c: c, at: map[feed.EntryID]map[*member][]time.Time{}, epoch: map[feed.EntryID]string{}}
	(&club{id: c.id, members: who}).watch(func(m *member, e *feed.Entry) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.at[e.ID] == nil {
			a.at[e.ID] = map[*member][]time.Time{}
		}
		a.at[e.ID][m] = append(a.at[e.ID][m], time.Now())
		a.epoch[e.ID] = string(e.Epoch)
	})
	return a
}

// say lets somebody say something.
func (a *tallies) say(m *member, text string) spoken {
	a.t.Helper()
	now := time.Now()
	msg, err := a.c.say(a.t.Context(), m, text)
	if err != nil {
		a.t.Fatalf("%s cannot speak: %v", m.name, err)
	}
	s := spoken{msg.ID, m, now}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.said = append(a.said, s)
	return s
}

// times says how often a message became durable somewhere.
func (a *tallies) times(s spoken, m *member) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.at[s.id][m])
}

func (a *tallies) everywhere(s spoken, who []*member) bool {
	for _, m := range who {
		if a.times(s, m) == 0 {
			return false
		}
	}
	return true
}

// warm lets all speak in turn until everybody hears what was said last: links, keys and topics are there.
func (a *tallies) warm(who []*member) {
	a.t.Helper()
	for i := range 100 {
		s := a.say(who[i%len(who)], text(i))
		time.Sleep(2 * time.Second)
		if i >= len(who) && a.everywhere(s, who) {
			return
		}
	}
	a.t.Fatal("the members do not hear each other")
}

// once fails unless each message is at each of these members, one time, and gives the delays of all but the authors'.
func (a *tallies) once(said []spoken, who []*member) (delays samples) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	wrong := 0
	for _, s := range said {
		for _, m := range who {
			at := a.at[s.id][m]
			if len(at) != 1 {
				wrong++
				continue
			}
			if m != s.by {
				delays = append(delays, at[0].Sub(s.at))
			}
		}
	}
	if wrong > 0 {
		a.t.Errorf("of %d messages to %d members %d are not there, or more than once", len(said), len(who), wrong)
	}
	return delays
}

// roster is who is in the group and what is set, in the eyes of a member.
func (a *tallies) roster(m *member) string {
	a.t.Helper()
	info := a.info(m)
	var people []groups.Member
	err := m.db.View(func(tx *storage.Tx) (err error) { people, err = m.groups.Members(tx, a.c.id); return err })
	if err != nil {
		a.t.Fatal(err)
	}
	out := fmt.Sprintln(info.Name, info.Description, info.Join, info.History, info.Mute, info.Size)
	for _, p := range people {
		out += fmt.Sprintln(p.Account, p.Role, p.Nickname)
	}
	return out
}

func (a *tallies) info(m *member) (in groups.Info) {
	a.t.Helper()
	err := m.db.View(func(tx *storage.Tx) (err error) { in, err = m.groups.Info(tx, a.c.id); return err })
	if err != nil {
		a.t.Fatal(err)
	}
	return in
}

// epochOf is the epoch a message was written under.
func (a *tallies) epochOf(s spoken) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.epoch[s.id]
}

func (a *tallies) state(m *member) groups.State { return a.info(m).State }

// history is what a member's user sees of the group, oldest first.
func (a *tallies) history(m *member) (lines []messenger.Message) {
	a.t.Helper()
	h, err := m.messenger.History(a.t.Context(), messenger.HistoryQuery{Who: "group:" + a.c.id.String(), Limit: 1000})
	if err != nil {
		a.t.Fatalf("reading the history of %s: %v", m.name, err)
	}
	if h.More {
		a.t.Fatal("this test reads one page only")
	}
	return h.Messages
}

// words are the texts of a history in its order.
func (a *tallies) words(m *member) (ids []feed.EntryID) {
	a.t.Helper()
	for _, l := range a.history(m) {
		if l.Kind == messenger.MessageText {
			ids = append(ids, l.ID)
		}
	}
	return ids
}

// until waits in virtual time for a condition and says how long that took.
func (a *tallies) until(limit time.Duration, what string, ok func() bool) time.Duration {
	a.t.Helper()
	begun := time.Now()
	for !ok() {
		if time.Since(begun) > limit {
			a.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(time.Second)
	}
	return time.Since(begun)
}
