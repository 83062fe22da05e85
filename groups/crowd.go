package groups

import (
	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// maxFeeds is how many feeds of one account are taken in a group: so many of chat, and so many of acts. An account certifies as many
// device keys as it likes, in no time and without saying so in its record, and each begins feeds that every member keeps for ever
// and names in their heads, of which a session takes 16,384. A removal could not cut more either.
const maxFeeds = roster.MaxCuts

// fewActs is how many acts of one feed are taken although the other devices of its account wrote as many as it may have: whoever
// holds a stolen one must not keep its owner from revoking it.
const fewActs = 64

// fills tells whether an account has more than n acts in a group, on all its devices together. Headers of branches are not
// counted: anybody may have made them. Called with mu held.
func (gr *group) fills(account identity.AccountID, n int) bool {
	if len(gr.places) <= n {
		return false // as in nearly every group
	}
	acts := 0
	for id, p := range gr.places {
		if _, branch := gr.paid[id]; p.account == account && !branch {
			acts++
		}
	}
	return acts > n
}

// crowd is an account that has as many feeds in a group as it may have.
type crowd struct {
	conv    ID
	account identity.AccountID
	number  feed.Number
}

// maxCrowds bounds those that are remembered; others are counted anew.
const maxCrowds = 1024

// begins counts one more feed of an account, and tells whether it may have it as far as feeds were counted. That is never too few: also
// what was not taken in the end is counted, until all are counted anew. To do that for every newcomer of a big group took seconds.
func (gr *group) begins(c crowd) bool {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	if gr.feeds == nil || gr.feeds[c] >= maxFeeds {
		return false
	}
	gr.feeds[c]++
	return true
}

// countFeeds counts the feeds of all, and one more of an account, that of a device. It returns how many there are besides.
func (gr *group) countFeeds(ends []feed.Head, c crowd, device identity.DeviceID) int {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	gr.feeds = map[crowd]int{}
	for _, h := range ends {
		if h.Device != device || h.Number != c.number {
			gr.feeds[crowd{gr.id, h.Account, h.Number}]++
		}
	}
	n := gr.feeds[c]
	gr.feeds[c]++
	return n
}

// crowded tells whether a run would begin a feed too many of its author. Acts for which others wait are taken: those who hold other
// feeds of the account have built upon them.
func (g *Groups) crowded(tx *storage.Tx, gr *group, run feed.Run) (bool, error) {
	id, c := run.Feed(), crowd{gr.id, run.Account(), run.Feed().Number}
	if c.account == g.self.Account {
		return false, nil
	}
	if _, known, err := g.parts.Feeds.Head(tx, id); known || err != nil {
		return false, err
	}
	g.mu.Lock()
	full := g.crowds[c]
	g.mu.Unlock()
	if !full {
		if gr.begins(c) {
			return false, nil
		}
		ends, err := g.parts.Feeds.Ends(tx, gr.id)
		if err != nil {
			return false, err
		}
		if gr.countFeeds(ends, c, id.Device) < maxFeeds {
			return false, nil
		}
		g.mu.Lock()
		putBounded(&g.crowds, c, true, maxCrowds)
		g.mu.Unlock()
	}
	gr.mu.Lock()
	defer gr.mu.Unlock()
	return id.Number != feed.Control || !gr.needs(run.Entries()), nil
}
