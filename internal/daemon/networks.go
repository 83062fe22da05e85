package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hima/identity"
	"hima/internal/directory"
	"hima/internal/messenger"
)

// fetchTimeout bounds a question for somebody's records that nobody waits for.
const fetchTimeout = 30 * time.Second

// onNetworks is what the messenger sees of the networks.
type onNetworks struct{ u *unlocked }

// SearchName implements messenger.Networks.
func (n onNetworks) SearchName(ctx context.Context, name string) (messenger.NameSearch, error) {
	r, err := n.u.directory.SearchName(ctx, name)
	if errors.Is(err, directory.ErrNoNetwork) {
		return messenger.NameSearch{Unreachable: n.names()}, nil
	}
	if err != nil {
		return messenger.NameSearch{}, err
	}
	out := messenger.NameSearch{Disagreement: r.Disagreement, Unreachable: r.Unreachable}
	for _, f := range r.People {
		out.People = append(out.People, messenger.FoundName{
			Account: f.Account, Name: f.Name, Network: f.Network, NetworkName: f.NetworkName, Confirmed: f.Confirmed, Since: f.Since,
		})
	}
	return out, nil
}

func (n onNetworks) names() (out []string) {
	for _, s := range n.u.directory.Networks() {
		out = append(out, s.Name)
	}
	return out
}

// Join implements messenger.Networks.
func (n onNetworks) Join(ctx context.Context, link identity.NetworkLink) (bool, error) {
	s, added, err := n.u.directory.MeetNetwork(ctx, link)
	if err != nil || !added {
		return added, err
	}
	// Without waiting: the network answers when it answers, and the name is pending until then.
	n.u.background(func(ctx context.Context) { n.u.claimOwn(ctx, s.ID) })
	return true, nil
}

// Links implements messenger.Networks.
func (n onNetworks) Links() []identity.NetworkLink {
	all := n.u.directory.Networks()
	slices.SortStableFunc(all, func(a, b directory.NetworkState) int {
		switch {
		case a.Online == b.Online:
			return 0
		case a.Online:
			return -1
		}
		return 1
	})
	var out []identity.NetworkLink
	for _, s := range all {
		out = append(out, s.Link)
	}
	return out
}

// NameStates implements messenger.Networks.
func (n onNetworks) NameStates() []messenger.NameState {
	var out []messenger.NameState
	for _, s := range n.u.directory.Networks() {
		out = append(out, n.u.nameOn(s))
	}
	return out
}

func nameState(s directory.NameState, network string) messenger.NameState {
	if s.State == "" {
		s.State = directory.NameNone
	}
	return messenger.NameState{Network: s.Network, NetworkName: network, Name: s.Name, State: s.State, Since: s.Since, Holder: s.Holder}
}

// CheckName implements messenger.Networks.
func (n onNetworks) CheckName(ctx context.Context, network identity.NetworkID, name string) error {
	s, ok := n.state(network)
	if !ok {
		return directory.ErrNetworkUnknown
	}
	return taken(directory.CheckName(ctx, n.u.node, s.Link, name, n.u.vault.Account), s.Name)
}

// ClaimName implements messenger.Networks.
func (n onNetworks) ClaimName(ctx context.Context, network identity.NetworkID, name string) (messenger.NameState, error) {
	s, err := n.u.directory.ClaimName(ctx, network, name)
	st, _ := n.state(network)
	switch {
	case errors.Is(err, directory.ErrNoAccountKey):
		err = messenger.ErrNoSeed
	case err != nil:
		err = taken(err, st.Name)
	}
	return nameState(s, st.Name), err
}

// Fetch implements messenger.Networks.
func (n onNetworks) Fetch(account identity.AccountID) {
	n.u.background(func(ctx context.Context) { n.u.fetch(ctx, account) })
}

func (n onNetworks) state(id identity.NetworkID) (directory.NetworkState, bool) {
	for _, s := range n.u.directory.Networks() {
		if s.ID == id {
			return s, true
		}
	}
	return directory.NetworkState{}, false
}

// taken turns the directory's word for a name that somebody has into the messenger's.
func taken(err error, network string) error {
	if t, ok := errors.AsType[*directory.NameTakenError](err); ok {
		return &messenger.NameTaken{NetworkName: network, Name: t.Name, Holder: t.Holder, Since: t.Since}
	}
	return err
}

// claimOwn takes the own username on a joined network.
func (u *unlocked) claimOwn(ctx context.Context, network identity.NetworkID) {
	me, err := u.messenger.Profile(ctx)
	if err == nil && me.Username != "" {
		// Asking costs nothing, a claim a proof of work. Whoever cannot be asked now says nothing against it.
		if s, ok := (onNetworks{u}).state(network); ok {
			err = directory.CheckName(ctx, u.node, s.Link, me.Username, u.vault.Account)
		}
		if !errors.Is(err, directory.ErrNameTaken) {
			_, err = u.directory.ClaimName(ctx, network, me.Username)
		}
	}
	if t, ok := errors.AsType[*directory.NameTakenError](err); ok {
		u.onNameLost(network, t)
	} else if err != nil && !errors.Is(err, directory.ErrNoAccountKey) {
		u.log.Info("claiming the username", "network", network.Short(), "err", err)
	}
}

// lostNames are networks on which somebody else had the own username before it was ever claimed there: the directory
// keeps only claims.
type lostNames struct {
	mu sync.Mutex
	m  map[identity.NetworkID]directory.NameState // bounded by the networks that are joined
}

// put notes one and tells whether that is news.
func (l *lostNames) put(s directory.NameState) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = map[identity.NetworkID]directory.NameState{}
	}
	was := l.m[s.Network]
	l.m[s.Network] = s
	return was != s
}

// over returns what is known instead of a name that is not claimed.
func (l *lostNames) over(id identity.NetworkID, s directory.NameState) directory.NameState {
	l.mu.Lock()
	defer l.mu.Unlock()
	lost, ok := l.m[id]
	switch {
	case !ok:
	case s.State == "" || s.State == directory.NameNone:
		return lost
	default:
		delete(l.m, id)
	}
	return s
}

func (l *lostNames) drop(id identity.NetworkID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.m, id)
}

// onNameLost tells the user that the own name is somebody else's on a network.
func (u *unlocked) onNameLost(network identity.NetworkID, t *directory.NameTakenError) {
	s := directory.NameState{Network: network, Name: t.Name, State: directory.NameLost, Since: t.Since, Holder: t.Holder}
	if !u.lost.put(s) {
		return
	}
	name := network.Short()
	for _, n := range u.directory.Networks() {
		if n.ID == network {
			name = n.Name
		}
	}
	u.notes.add(note{name: &directory.NameEvent{NameState: s, NetworkName: name}})
}

// nameOn is how the own username stands on a network.
func (u *unlocked) nameOn(s directory.NetworkState) messenger.NameState {
	out := nameState(u.lost.over(s.ID, s.Username), s.Name)
	out.Network = s.ID
	return out
}

// background runs f beside everything else, for a bounded time. Nobody waits for its result, and when so much is under way
// that one more would come to nothing it is left out.
func (u *unlocked) background(f func(context.Context)) (taken bool) {
	select {
	case u.tasks <- f:
		return true
	default:
		return false
	}
}

// taskWorkers is how many tasks run at a time, maxTasks how many wait.
const (
	taskWorkers = 4
	maxTasks    = 64
)

func (u *unlocked) runAllTasks(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { return u.runRefetches(ctx) })
	for range taskWorkers {
		g.Go(func() error { return u.runTasks(ctx) })
	}
	return g.Wait()
}

func (u *unlocked) runTasks(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-u.tasks:
			bounded, cancel := context.WithTimeout(ctx, fetchTimeout)
			f(bounded)
			cancel()
		}
	}
}
