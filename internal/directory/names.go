package directory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/storage"
)

// States of the own name on a network.
const (
	NameNone        = "none"        // none is claimed
	NamePending     = "pending"     // claimed here; no register was reached yet
	NameConfirmed   = "confirmed"   // stamped by the network
	NameUnconfirmed = "unconfirmed" // claimed; the network has nobody who stamps
	NameLost        = "lost"        // somebody else has it
)

// NameState is how the own name stands on a network.
type NameState struct {
	Network identity.NetworkID
	Name    string
	State   string
	Since   time.Time          // when it was stamped; while it is not, when it was claimed
	Holder  identity.AccountID // who has it, if it is lost
}

// NameEvent says that the own name on a network changed its state.
type NameEvent struct {
	NameState
	NetworkName string
}

var (
	// ErrNameTaken is wrapped by every *NameTakenError.
	ErrNameTaken = errors.New("name is taken")
	// ErrBadName is returned for a name that is no username in its canonical form.
	ErrBadName = errors.New("not a username in its canonical form")
	// ErrNoAccountKey is returned by ClaimName on a device that cannot sign for its account (R17).
	ErrNoAccountKey = errors.New("this device cannot sign for its account")
	// ErrTooManyNames is returned by ClaimName when the network gave this account as many names as one may have.
	ErrTooManyNames = errors.New("this account has as many names on the network as it may have")
)

// errRebuilding: a register answered, and stamps nothing yet.
var errRebuilding = errors.New("the register is being rebuilt")

// errBusy: a register wants no more questions for now.
var errBusy = errors.New("the register is busy")

// errNoRegister: the network has nobody who stamps.
var errNoRegister = errors.New("no bootstrap node of the network registers names")

// NameTakenError says who has a name, and since when.
type NameTakenError struct {
	Network identity.NetworkID
	Name    string
	Holder  identity.AccountID
	Since   time.Time
}

// Error implements error.
func (e *NameTakenError) Error() string {
	return fmt.Sprintf("%v: by %s since %s", ErrNameTaken, e.Holder.Short(), e.Since.UTC().Format(time.DateOnly))
}

// Unwrap makes errors.Is(err, ErrNameTaken) true.
func (e *NameTakenError) Unwrap() error { return ErrNameTaken }

// ownNameKey is where the own name on a network is kept, durably:
//
//	d/m/ network            savedName as JSON
func ownNameKey(id identity.NetworkID) []byte { return append([]byte("d/m/"), id[:]...) }

type savedName struct {
	State  string             `json:"state"`
	Claim  []byte             `json:"claim"`
	Stamp  []byte             `json:"stamp,omitempty"`
	Holder identity.AccountID `json:"holder,omitzero"`
}

// ownName is the own name on one network.
type ownName struct {
	state  string
	claim  identity.NameClaim
	stamp  identity.NameStamp // zero: not stamped
	holder identity.AccountID

	next  time.Time // when a register is asked again
	fails int
}

// ownNames are the own names by network.
type ownNames struct {
	db *storage.DB
	// writing orders changes: a claim of the user and an answer that is applied in the background.
	writing sync.Mutex
	ended   chan struct{} // closed when Run ends

	mu   sync.Mutex
	m    map[identity.NetworkID]ownName // at most maxNetworks
	work map[[32]byte][]byte            // by claim; at most 2*maxNetworks
}

func (n *ownNames) init(db *storage.DB) {
	n.db, n.m, n.work, n.ended = db, map[identity.NetworkID]ownName{}, map[[32]byte][]byte{}, make(chan struct{})
}

func (n *ownNames) load(tx *storage.Tx) error {
	return tx.Scan(storage.ScanOptions{Prefix: []byte("d/m/")}, func(key, value []byte) (bool, error) {
		o, err := decodeName(value)
		if err != nil {
			return false, fmt.Errorf("reading an own name: %w", err)
		}
		n.m[identity.NetworkID(key[4:])] = o
		return true, nil
	})
}

func decodeName(b []byte) (ownName, error) {
	var s savedName
	if err := json.Unmarshal(b, &s); err != nil {
		return ownName{}, err
	}
	o := ownName{state: s.State, holder: s.Holder}
	var err error
	if o.claim, err = identity.ParseNameClaim(s.Claim); err != nil {
		return ownName{}, err
	}
	if len(s.Stamp) > 0 {
		o.stamp, err = identity.ParseNameStamp(s.Stamp)
	}
	return o, err
}

func (n *ownNames) get(id identity.NetworkID) (ownName, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	o, ok := n.m[id]
	return o, ok
}

// state is what is shown of the own name.
func (n *ownNames) state(id identity.NetworkID) NameState {
	o, ok := n.get(id)
	if !ok {
		return NameState{Network: id, State: NameNone}
	}
	return o.shown()
}

func (o ownName) shown() NameState {
	s := NameState{Network: o.claim.Network, Name: o.claim.Name, State: o.state, Since: o.claim.Time, Holder: o.holder}
	if o.state == NameConfirmed {
		s.Since = o.stamp.Time
	}
	return s
}

// record is what is put into the table: the stamped claim, or the bare one as long as nobody stamped it.
func (n *ownNames) record(id identity.NetworkID) (identity.NameRecord, bool) {
	o, ok := n.get(id)
	switch {
	case !ok || o.state == NameLost:
		return identity.NameRecord{}, false
	case o.state == NameConfirmed:
		return identity.StampedName(o.stamp), true
	}
	return identity.UnstampedName(o.claim), true
}

// confirmed lists the names that the account record may carry.
func (n *ownNames) confirmed(open []*joined) []identity.RecordName {
	var out []identity.RecordName
	for _, j := range open {
		if o, ok := n.get(j.id); ok && o.state == NameConfirmed && len(out) < identity.MaxNames {
			out = append(out, identity.RecordName{Network: j.id, Name: o.claim.Name})
		}
	}
	return out
}

// put makes a state durable. The caller holds writing.
func (n *ownNames) put(ctx context.Context, id identity.NetworkID, o ownName) error {
	s := savedName{State: o.state, Claim: o.claim.Raw(), Holder: o.holder}
	if !o.stamp.IsZero() {
		s.Stamp = o.stamp.Raw()
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("writing an own name: %w", err)
	}
	if err := n.db.Update(ctx, func(tx *storage.Tx) error { return tx.Set(ownNameKey(id), b) }); err != nil {
		return fmt.Errorf("storing an own name: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.m[id] = o
	return nil
}

// later puts the next try off; that is not worth a write.
func (n *ownNames) later(id identity.NetworkID, claim identity.NameClaim, now time.Time, pause time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	o, ok := n.m[id]
	if !ok || o.claim.Hash() != claim.Hash() {
		return
	}
	o.next = now.Add(min(pause<<min(o.fails, 16), namePauseMax))
	o.fails++
	n.m[id] = o
}

func (n *ownNames) soon(id identity.NetworkID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if o, ok := n.m[id]; ok {
		o.next, o.fails = time.Time{}, 0
		n.m[id] = o
	}
}

func (n *ownNames) drop(id identity.NetworkID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.m, id)
}

// ClaimName takes a name on a joined network: stamped at once if a register answers (confirmed), else pending, which Run
// completes; a *NameTakenError if somebody has it, and then nothing changed. A deadline of ctx ends the waiting for registers,
// not counting the time of the proof of work, and leaves the claim pending; a cancelled ctx drops it. Claiming another name replaces the one before, which stays registered to
// this account.
func (d *Directory) ClaimName(ctx context.Context, network identity.NetworkID, name string) (NameState, error) {
	j := d.nets.get(network)
	if j == nil {
		return NameState{}, ErrNetworkUnknown
	}
	if canonical, err := text.Username(name); err != nil || canonical != name {
		return NameState{}, ErrBadName
	}
	key, ok := d.accountKey()
	if !ok {
		return NameState{}, ErrNoAccountKey
	}
	d.names.writing.Lock()
	defer d.names.writing.Unlock()
	have, known := d.names.get(network)
	if known && have.claim.Name == name && have.state == NameConfirmed {
		return have.shown(), nil
	}
	next := ownName{state: NamePending}
	if known && have.claim.Name == name {
		next.claim = have.claim // the work that was done for it stays good
	} else {
		claim, err := identity.NewNameClaim(key, network, name, d.now())
		if err != nil {
			return NameState{}, err
		}
		next.claim = claim
	}
	// However little patience the caller has: once signed, the claim is kept, unless he changes his mind.
	keep, done := d.untilCancelled(ctx)
	defer done()
	patience := claimTimeout
	if end, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(end))
	}
	work := d.claimWork(keep, next.claim)
	ask, cancel := context.WithTimeout(keep, patience)
	defer cancel()
	stamp, err := d.claimAt(ask, j, next.claim, work)
	var taken *NameTakenError
	switch {
	case keep.Err() != nil:
		return d.names.state(network), ctx.Err()
	case err == nil:
		next.state, next.stamp = NameConfirmed, stamp
	case errors.As(err, &taken):
		if known && have.claim.Name == name { // it was pending, and was lost meanwhile
			have.state, have.holder = NameLost, taken.Holder
			if e := d.setName(keep, j, have); e != nil {
				return NameState{}, e
			}
		}
		return d.names.state(network), err
	case errors.Is(err, ErrTooManyNames):
		return d.names.state(network), err
	case errors.Is(err, errNoRegister):
		next.state = NameUnconfirmed
	default:
		d.log.Debug("claiming a name", "network", network.Short(), "error", err)
	}
	if err := d.setName(keep, j, next); err != nil {
		return NameState{}, err
	}
	if next.state != NameConfirmed {
		d.names.later(network, next.claim, d.now(), namePause)
	}
	return next.shown(), nil
}

// untilCancelled is ctx without its deadline. A context whose deadline has passed does not tell any more when its parent is
// cancelled, so that the end of Run ends it too.
func (d *Directory) untilCancelled(ctx context.Context) (context.Context, func()) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if errors.Is(ctx.Err(), context.Canceled) {
		cancel() // at once: what AfterFunc starts may come too late
	}
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) {
			cancel()
		}
	})
	go func() {
		select {
		case <-d.names.ended:
			cancel()
		case <-out.Done():
		}
	}()
	return out, func() { stop(); cancel() }
}

// claimWork does the work over a claim once: on a busy machine it may take longer than a register is waited for.
func (d *Directory) claimWork(ctx context.Context, claim identity.NameClaim) []byte {
	hash := claim.Hash()
	d.names.mu.Lock()
	work := d.names.work[hash]
	d.names.mu.Unlock()
	if work != nil {
		return work
	}
	work = identity.ClaimWork(ctx, claim, d.workBits)
	if work == nil {
		return nil
	}
	d.names.mu.Lock()
	defer d.names.mu.Unlock()
	if len(d.names.work) >= 2*maxNetworks {
		clear(d.names.work) // claims that were given up
	}
	d.names.work[hash] = work
	return work
}

func (d *Directory) accountKey() (identity.AccountKey, bool) {
	if d.cfg.AccountKey == nil {
		return identity.AccountKey{}, false
	}
	key, ok := d.cfg.AccountKey()
	return key, ok && key.ID() == d.self
}

// setName makes a state of the own name durable and lets everything follow from it. The caller holds names.writing.
func (d *Directory) setName(ctx context.Context, j *joined, o ownName) error {
	before := d.names.state(j.id)
	if err := d.names.put(ctx, j.id, o); err != nil {
		return err
	}
	if d.nets.get(j.id) != j { // left meanwhile
		d.names.drop(j.id)
		return ErrNetworkUnknown
	}
	if after := o.shown(); after != before {
		d.log.Info("own name", "network", j.id.Short(), "state", o.state)
		if d.cfg.OnName != nil {
			d.cfg.OnName(NameEvent{after, j.name})
		}
	}
	j.nudge()
	j.nudgeName()
	return d.renewOwn(ctx)
}

// claimAt asks the registers of a network, the founder's first, to stamp a claim, and tells the others what came of it.
func (d *Directory) claimAt(ctx context.Context, j *joined, claim identity.NameClaim, work []byte) (identity.NameStamp, error) {
	regs := j.registers()
	if len(regs) == 0 {
		return identity.NameStamp{}, errNoRegister
	}
	err, mute := ErrUnreachable, 0
	for i, reg := range regs {
		a, e := d.asks.name(ctx, reg.Device, reg.Addrs, &pb.NameRequest{Of: &pb.NameRequest_Register{
			Register: &pb.NameRegister{Claim: claim.Raw(), Work: work},
		}})
		if e != nil {
			if errors.Is(e, node.ErrNotSpoken) {
				mute++
			}
			if errors.Is(err, ErrUnreachable) {
				err = fmt.Errorf("%w: %w", ErrUnreachable, e)
			}
			continue
		}
		stamp, e := judgeClaim(a, claim, j.keys())
		var taken *NameTakenError
		switch {
		case e == nil:
			d.handOn(ctx, j, regs[:i], regs[i+1:], stamp)
			return stamp, nil
		case errors.As(e, &taken), errors.Is(e, ErrTooManyNames):
			return identity.NameStamp{}, e
		default:
			err = e
		}
	}
	if mute == len(regs) {
		err = errNoRegister
	}
	return identity.NameStamp{}, err
}

// judgeClaim says what an answer means for a claim.
func judgeClaim(a nameAnswer, claim identity.NameClaim, keys []identity.DeviceID) (identity.NameStamp, error) {
	switch a.code {
	case pb.NameAnswer_CODE_STAMPED, pb.NameAnswer_CODE_TAKEN:
		if !stampFits(a.stamp, claim.Network, claim.Name, keys) {
			return identity.NameStamp{}, fmt.Errorf("a stamp that does not fit: %w", identity.ErrMalformed)
		}
		if a.stamp.Claim.Account != claim.Account {
			return identity.NameStamp{}, &NameTakenError{claim.Network, claim.Name, a.stamp.Claim.Account, a.stamp.Time}
		}
		return a.stamp, nil
	case pb.NameAnswer_CODE_REBUILDING:
		return identity.NameStamp{}, errRebuilding
	case pb.NameAnswer_CODE_FULL:
		return identity.NameStamp{}, ErrTooManyNames
	}
	return identity.NameStamp{}, fmt.Errorf("the register says %s: %w", a.code, ErrUnreachable)
}

// stampFits tells whether a stamp is about a name, by one of the keys that count.
func stampFits(s identity.NameStamp, network identity.NetworkID, name string, keys []identity.DeviceID) bool {
	return !s.IsZero() && s.Claim.Network == network && s.Claim.Name == name && identity.StampedName(s).Stamped(keys)
}

// handOn lets the sisters of the register that stamped know at once, so that none of them stamps the name for another.
func (d *Directory) handOn(ctx context.Context, j *joined, before, after []savedBootstrap, s identity.NameStamp) {
	ctx, cancel := context.WithTimeout(ctx, handOnTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, regs := range [][]savedBootstrap{before, after} {
		for _, reg := range regs {
			wg.Go(func() {
				if err := d.giveBack(ctx, reg, []identity.NameStamp{s}); err != nil {
					d.log.Debug("telling a register of a stamp", "network", j.id.Short(), "error", err)
				}
			})
		}
	}
	wg.Wait()
}

// giveBack hands stamps to a register.
func (d *Directory) giveBack(ctx context.Context, reg savedBootstrap, stamps []identity.NameStamp) error {
	for len(stamps) > 0 {
		q := &pb.NameReturn{}
		for _, s := range stamps[:min(len(stamps), maxReturn)] {
			q.Stamps = append(q.Stamps, s.Raw())
		}
		stamps = stamps[len(q.Stamps):]
		a, err := d.asks.name(ctx, reg.Device, reg.Addrs, &pb.NameRequest{Of: &pb.NameRequest_Return{Return: q}})
		if err != nil {
			return err
		}
		if a.code == pb.NameAnswer_CODE_BUSY {
			return errBusy
		}
	}
	return nil
}
