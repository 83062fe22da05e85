package directory

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/storage"
)

// runNetworks keeps one runner for each joined network, also for those that are joined and left while it runs.
func (d *Directory) runNetworks(ctx context.Context) error {
	type runner struct {
		stop context.CancelFunc
		done chan struct{}
	}
	running := map[*joined]runner{}
	end := func(j *joined) {
		running[j].stop()
		<-running[j].done
		delete(running, j)
	}
	defer func() {
		for j := range running {
			running[j].stop() // all at once, then wait
		}
		for j := range running {
			end(j)
		}
	}()
	for {
		want := d.nets.list()
		for j := range running {
			if !slices.Contains(want, j) {
				end(j)
			}
		}
		for _, j := range want {
			if _, ok := running[j]; ok {
				continue
			}
			run, stop := context.WithCancel(ctx)
			r := runner{stop, make(chan struct{})}
			running[j] = r
			go func() {
				defer close(r.done)
				defer stop()
				d.runNetwork(run, j)
			}()
		}
		d.setBootstraps(want)
		select {
		case <-ctx.Done():
			return nil
		case <-d.nets.changed:
		}
	}
}

// setBootstraps tells the node the bootstrap nodes of all networks.
func (d *Directory) setBootstraps(all []*joined) {
	if d.cfg.Node == nil {
		return
	}
	var set []node.Bootstrap
	for _, j := range all {
		for _, b := range j.state().Bootstraps {
			i := slices.IndexFunc(set, func(o node.Bootstrap) bool { return o.Device == b.Device })
			if i < 0 {
				i = len(set)
				set = append(set, node.Bootstrap{Device: b.Device})
			}
			set[i].Addrs = merge(set[i].Addrs, b.Addrs)
		}
	}
	d.cfg.Node.SetBootstraps(set)
}

// runNetwork opens the table of a network and does all that is to be done there until ctx ends.
func (d *Directory) runNetwork(ctx context.Context, j *joined) {
	for ctx.Err() == nil {
		table, err := d.openTable(j)
		if err != nil {
			d.log.Error("joining a network", "network", j.id.Short(), "error", err)
			sleep(ctx, openPause)
			continue
		}
		d.runTable(ctx, j, table)
		sleep(ctx, openPause) // only if the table ended by itself
	}
}

// runTable works with an open table until ctx or the table ends.
func (d *Directory) runTable(ctx context.Context, j *joined, table dht) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	j.setDHT(table)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		if err := table.Run(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("running a network's table", "network", j.id.Short(), "error", err)
		}
	})
	wg.Go(func() { d.publishLoop(ctx, j, table) })
	wg.Go(func() { d.tendLoop(ctx, j, table) })
	wg.Go(func() { d.attendLoop(ctx, j) })
	wg.Go(func() { d.provideLoop(ctx, j, table) })
	wg.Wait()
	j.setDHT(nil)
	if err := table.Close(); err != nil {
		d.log.Debug("closing a network's table", "network", j.id.Short(), "error", err)
	}
}

// openNodeTable is how tables are opened outside of tests.
func (d *Directory) openNodeTable(j *joined) (dht, error) {
	c := TableConfig(j.id, j.keys, d.now)
	c.Server = true
	c.Store = d.cfg.DB
	c.Bootstraps = func() []node.Bootstrap {
		var out []node.Bootstrap
		for _, b := range j.state().Bootstraps {
			out = append(out, node.Bootstrap{Device: b.Device, Addrs: b.Addrs})
		}
		return out
	}
	return d.cfg.Node.NewDHT(c)
}

// bootstrapUp notes that a bootstrap node is there: it is asked what it serves, and its register is looked after.
func (d *Directory) bootstrapUp(dev identity.DeviceID) {
	for _, j := range d.nets.list() {
		s := j.state()
		if s.find(dev) == nil {
			continue
		}
		j.mu.Lock()
		j.greet[dev] = time.Time{}
		j.mu.Unlock()
		d.names.soon(j.id)
		j.nudge()
		j.nudgeName()
	}
	d.places.forget()
}

// tellOnline says which networks came and went.
func (d *Directory) tellOnline() {
	if d.cfg.Node == nil {
		return
	}
	live := d.cfg.Node.Bootstraps()
	for _, j := range d.nets.list() {
		s := j.state()
		online := slices.ContainsFunc(live, func(b node.BootstrapState) bool { return b.Connected && s.find(b.Device) != nil })
		j.mu.Lock()
		changed := j.online != online
		j.online = online
		j.mu.Unlock()
		if changed {
			what := "offline"
			if online {
				what = "online"
			}
			d.tellNetwork(j, what)
		}
	}
}

// attendLoop talks to the bootstrap nodes of a network when there is a reason to.
func (d *Directory) attendLoop(ctx context.Context, j *joined) {
	if d.cfg.Node != nil {
		s := j.state()
		for _, b := range d.cfg.Node.Bootstraps() {
			if b.Connected && s.find(b.Device) != nil {
				d.bootstrapUp(b.Device)
			}
		}
	}
	for {
		wait := republish
		for _, dev := range j.due(d.now()) {
			again := d.greet(ctx, j, dev)
			if ctx.Err() != nil {
				return
			}
			j.mu.Lock()
			j.greet[dev] = d.now().Add(again)
			j.mu.Unlock()
		}
		d.settleName(ctx, j)
		if ctx.Err() != nil {
			return
		}
		wait = min(wait, j.nextGreeting(d.now()))
		if o, ok := d.names.get(j.id); ok && (o.state == NamePending || o.state == NameUnconfirmed) {
			wait = min(wait, o.next.Sub(d.now()))
		}
		t := time.NewTimer(max(wait, time.Second))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-j.attend:
			t.Stop()
		case <-t.C:
		}
	}
}

func (j *joined) due(now time.Time) []identity.DeviceID {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []identity.DeviceID
	for dev, at := range j.greet {
		if !now.Before(at) {
			out = append(out, dev)
		}
	}
	return out
}

func (j *joined) nextGreeting(now time.Time) time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	wait := republish
	for _, at := range j.greet {
		wait = min(wait, at.Sub(now))
	}
	return wait
}

func (j *joined) nudgeName() {
	select {
	case j.attend <- struct{}{}:
	default:
	}
}

// greet asks a bootstrap node what it serves, and returns when to do it again.
func (d *Directory) greet(ctx context.Context, j *joined, dev identity.DeviceID) time.Duration {
	s := j.state()
	have := s.find(dev)
	if have == nil {
		return republish
	}
	start := d.now()
	c, err := d.asks.card(ctx, dev, have.Addrs)
	if err != nil {
		if ctx.Err() == nil {
			d.log.Debug("asking a bootstrap node what it serves", "device", dev.Short(), "error", err)
		}
		return greetAgain
	}
	if c.Network() != j.id {
		d.log.Warn("a bootstrap node serves another network than its link said", "device", dev.Short(), "network", c.Name)
		return republish
	}
	now := d.now()
	j.mu.Lock()
	j.skew[dev] = c.Time.Sub(start.Add(now.Sub(start) / 2)) // half the trip was there, half back
	j.mu.Unlock()
	serves := slices.Clone(c.Serves)
	// What the user gave stays in front: the node may not know how it is reached.
	addrs := merge(have.Addrs, c.Addrs)
	if !slices.Equal(serves, have.Serves) || !slices.Equal(addrs, have.Addrs) || now.Sub(have.Asked) >= time.Hour {
		err := d.nets.update(ctx, j, func(s *savedNetwork) {
			if b := s.find(dev); b != nil {
				b.Serves, b.Addrs, b.Asked = serves, addrs, now.UTC()
			}
		})
		switch {
		case err != nil:
			d.log.Debug("noting what a bootstrap node serves", "error", err)
		case have.Asked.IsZero() || !slices.Equal(serves, have.Serves):
			d.tellNetwork(j, "asked")
		}
	}
	if !slices.Contains(serves, ServeNames) {
		return republish
	}
	if err := d.guard(ctx, j, savedBootstrap{Device: dev, Addrs: addrs}); err != nil {
		d.log.Debug("looking after a register", "device", dev.Short(), "error", err)
		return greetAgain
	}
	return republish
}

// guard looks whether a register still knows what it stamped. One that does not gets back what is known here: that is how
// a register that lost its disk is rebuilt (R19).
func (d *Directory) guard(ctx context.Context, j *joined, reg savedBootstrap) error {
	kept := d.stamps(ctx, j, "")
	own, confirmed := d.names.get(j.id)
	if confirmed = confirmed && own.state == NameConfirmed; confirmed {
		kept = append([]identity.NameStamp{own.stamp}, kept...)
	}
	if len(kept) == 0 {
		return nil
	}
	probe := kept[0]
	a, err := d.asks.name(ctx, reg.Device, reg.Addrs, &pb.NameRequest{Of: &pb.NameRequest_Lookup{
		Lookup: &pb.NameLookup{Name: probe.Claim.Name},
	}})
	if err != nil {
		return err
	}
	knows := stampFits(a.stamp, j.id, probe.Claim.Name, j.keys())
	if confirmed && knows && a.stamp.Claim.Account != d.self {
		d.rival(ctx, j, identity.StampedName(a.stamp))
		if now, ok := d.names.get(j.id); !ok || now.state != NameConfirmed {
			return nil
		}
		knows = false // ours is the earlier one, and it does not know that
	}
	if knows && !a.rebuilding {
		return nil
	}
	// The own one first, the others in any order: what a busy register did not take now may be others' turn next.
	others := kept[min(1, len(kept)):]
	rand.Shuffle(len(others), func(i, k int) { others[i], others[k] = others[k], others[i] })
	return d.giveBack(ctx, reg, kept[:min(len(kept), maxGiveBack)])
}

// settleName tries to have a claim stamped that is not, when it is time.
func (d *Directory) settleName(ctx context.Context, j *joined) {
	o, ok := d.names.get(j.id)
	if !ok || o.state != NamePending && o.state != NameUnconfirmed || d.now().Before(o.next) {
		return
	}
	work := d.claimWork(ctx, o.claim)
	ask, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	stamp, err := d.claimAt(ask, j, o.claim, work)
	if ctx.Err() != nil {
		return
	}
	d.names.writing.Lock()
	defer d.names.writing.Unlock()
	if now, ok := d.names.get(j.id); !ok || now.claim.Hash() != o.claim.Hash() || now.state != o.state {
		return // the user did something meanwhile
	}
	var taken *NameTakenError
	switch {
	case err == nil:
		o.state, o.stamp = NameConfirmed, stamp
	case errors.As(err, &taken):
		o.state, o.holder = NameLost, taken.Holder
	case errors.Is(err, errNoRegister):
		o.state = NameUnconfirmed
	}
	if now := d.names.state(j.id); now.State != o.state {
		if err := d.setName(ctx, j, o); err != nil {
			d.log.Error("settling a name", "network", j.id.Short(), "error", err)
		}
	}
	if err != nil {
		pause := namePause
		if errors.Is(err, errRebuilding) || errors.Is(err, errNoRegister) || errors.Is(err, ErrTooManyNames) {
			pause = namePauseMax
		}
		d.names.later(j.id, o.claim, d.now(), pause)
	}
}

// rival looks at a record of the own name that somebody else showed. One that wins by the rules means that the name is lost.
func (d *Directory) rival(ctx context.Context, j *joined, r identity.NameRecord) {
	keys := j.keys()
	d.names.writing.Lock()
	defer d.names.writing.Unlock()
	o, ok := d.names.get(j.id)
	if !ok || o.state == NameLost || r.Claim.Network != j.id || r.Claim.Name != o.claim.Name || r.Claim.Account == d.self {
		return
	}
	mine := identity.UnstampedName(o.claim)
	if o.state == NameConfirmed {
		mine = identity.StampedName(o.stamp)
	}
	// Bare claims decide nothing among themselves: whoever wins by a hash has not registered anything.
	if !r.Stamped(keys) || identity.CompareNames(r, mine, keys) >= 0 {
		return
	}
	o.state, o.holder = NameLost, r.Claim.Account
	if err := d.setName(ctx, j, o); err != nil {
		d.log.Error("giving a name up", "network", j.id.Short(), "error", err)
	}
}

// renewOwn makes a new record of the own account if the one there names other usernames than are confirmed.
func (d *Directory) renewOwn(ctx context.Context) error {
	key, ok := d.accountKey()
	r, known := d.Record(d.self)
	names := d.names.confirmed(d.nets.list())
	if !ok || !known || slices.Equal(names, r.Names) {
		return nil
	}
	next, err := identity.NewAccountRecord(key, identity.RecordConfig{
		LastSeq: r.Seq, Now: d.now(), Devices: r.Devices, Revoked: r.Revoked[max(0, len(r.Revoked)-identity.MaxRevoked):], Names: names,
	})
	if err != nil {
		return fmt.Errorf("naming the own usernames: %w", err)
	}
	return d.SetOwn(ctx, next)
}

// forgetNetwork drops what is cached about a network that was left.
func (d *Directory) forgetNetwork(id identity.NetworkID) {
	d.names.drop(id)
	if err := d.cfg.DB.Cache(func(tx *storage.Tx) error { return deletePrefix(tx, tendedPrefix(id)) }); err != nil {
		d.log.Debug("forgetting a network", "error", err)
	}
}
