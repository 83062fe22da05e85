package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

var (
	errFull     = errors.New("account has as many names as it may have")
	errUnwanted = errors.New("not a stamp of this network")
)

// answer judges one request.
func (r *Register) answer(ctx context.Context, q *pb.NameRequest) *pb.NameAnswer {
	var code pb.NameAnswer_Code
	var stamp identity.NameStamp
	var err error
	switch of := q.Of.(type) {
	case *pb.NameRequest_Register:
		code, stamp, err = r.register(ctx, of.Register)
	case *pb.NameRequest_Lookup:
		code, stamp, err = r.lookup(of.Lookup)
	case *pb.NameRequest_Return:
		code, stamp, err = r.takeBack(ctx, of.Return)
	default:
		code = pb.NameAnswer_CODE_BAD
	}
	if err != nil {
		r.log.Error("serving the register", "error", err)
		code, stamp = pb.NameAnswer_CODE_BUSY, identity.NameStamp{}
	}
	if code == pb.NameAnswer_CODE_BAD || code == pb.NameAnswer_CODE_WORK || code == pb.NameAnswer_CODE_FULL {
		r.note(func(s *RegisterStats) { s.Refused++ })
	}
	a := &pb.NameAnswer{Code: code, TimeMs: r.now().UnixMilli(), Rebuilding: r.rebuilding()}
	if !stamp.IsZero() {
		a.Stamp = stamp.Raw()
	}
	return a
}

// verdict is the code for a stamp that is there.
func verdict(s identity.NameStamp, a identity.AccountID) pb.NameAnswer_Code {
	if s.Claim.Account == a {
		return pb.NameAnswer_CODE_STAMPED
	}
	return pb.NameAnswer_CODE_TAKEN
}

// register stamps a claim, or says who has the name.
func (r *Register) register(ctx context.Context, q *pb.NameRegister) (pb.NameAnswer_Code, identity.NameStamp, error) {
	claim, err := identity.ParseNameClaim(q.GetClaim())
	if err != nil || !r.fits(claim) {
		return pb.NameAnswer_CODE_BAD, identity.NameStamp{}, nil
	}
	if !identity.CheckClaimWork(claim, q.GetWork(), r.bits) {
		return pb.NameAnswer_CODE_WORK, identity.NameStamp{}, nil
	}
	have, ok, err := r.get(claim.Name)
	if err != nil {
		return 0, have, err
	}
	if ok {
		return verdict(have, claim.Account), have, nil
	}
	// Sisters stamp too. One that cannot be reached decides nothing: what both stamp, the earlier stamp has (R19).
	for _, s := range r.askSisters(ctx, claim.Name) {
		if err := r.accept(ctx, s); err != nil && !errors.Is(err, errFull) {
			return 0, identity.NameStamp{}, err
		}
	}
	if r.rebuilding() {
		if have, ok, err = r.get(claim.Name); err != nil || !ok {
			return pb.NameAnswer_CODE_REBUILDING, identity.NameStamp{}, err
		}
		return verdict(have, claim.Account), have, nil
	}
	return r.stamp(ctx, claim)
}

// stamp enters a claim, if nobody was faster.
func (r *Register) stamp(ctx context.Context, claim identity.NameClaim) (pb.NameAnswer_Code, identity.NameStamp, error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	have, ok, err := r.get(claim.Name)
	if err != nil {
		return 0, have, err
	}
	if ok {
		return verdict(have, claim.Account), have, nil
	}
	s, err := identity.NewNameStamp(r.cfg.Key, claim, r.now())
	if err != nil {
		return 0, s, err
	}
	err = r.enter(ctx, s, maxNamesEach)
	if errors.Is(err, errFull) {
		return pb.NameAnswer_CODE_FULL, identity.NameStamp{}, nil
	}
	if err != nil {
		return 0, identity.NameStamp{}, err
	}
	r.note(func(s *RegisterStats) { s.Stamped++ })
	return pb.NameAnswer_CODE_STAMPED, s, nil
}

func (r *Register) lookup(q *pb.NameLookup) (pb.NameAnswer_Code, identity.NameStamp, error) {
	if canonical, err := text.Username(q.GetName()); err != nil || canonical != q.GetName() {
		return pb.NameAnswer_CODE_BAD, identity.NameStamp{}, nil
	}
	r.note(func(s *RegisterStats) { s.Looked++ })
	s, ok, err := r.get(q.GetName())
	if err != nil || !ok {
		return pb.NameAnswer_CODE_NOT_FOUND, identity.NameStamp{}, err
	}
	return pb.NameAnswer_CODE_STAMPED, s, nil
}

// takeBack enters stamps that this node or a sister made and that are not known here. Of one that loses to another
// account's the answer tells.
func (r *Register) takeBack(ctx context.Context, q *pb.NameReturn) (pb.NameAnswer_Code, identity.NameStamp, error) {
	if len(q.GetStamps()) == 0 || len(q.GetStamps()) > maxReturn {
		return pb.NameAnswer_CODE_BAD, identity.NameStamp{}, nil
	}
	var winner identity.NameStamp
	for _, raw := range q.GetStamps() {
		s, err := identity.ParseNameStamp(raw)
		if err != nil {
			return pb.NameAnswer_CODE_BAD, identity.NameStamp{}, nil
		}
		err = r.accept(ctx, s)
		switch {
		case errors.Is(err, errFull), errors.Is(err, errUnwanted):
			continue // the others may be good
		case err != nil:
			return 0, identity.NameStamp{}, err
		}
		if have, ok, err := r.get(s.Claim.Name); err == nil && ok && have.Claim.Account != s.Claim.Account {
			winner = have
		}
	}
	if !winner.IsZero() {
		return pb.NameAnswer_CODE_TAKEN, winner, nil
	}
	return pb.NameAnswer_CODE_STAMPED, identity.NameStamp{}, nil
}

// fits tells whether a claim is one of this network, of a name as names are, and not from the future.
func (r *Register) fits(c identity.NameClaim) bool {
	canonical, err := text.Username(c.Name)
	return err == nil && canonical == c.Name && c.Network == r.cfg.Link().ID() && !c.Time.After(r.now().Add(identity.ClockSlack))
}

// accept enters a stamp made elsewhere or before, if it wins against what is there.
func (r *Register) accept(ctx context.Context, s identity.NameStamp) error {
	keys := r.cfg.Link().Keys()
	if !slices.Contains(keys, s.Key) || !r.fits(s.Claim) || s.Time.After(r.now().Add(identity.ClockSlack)) {
		return errUnwanted
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	have, ok, err := r.get(s.Claim.Name)
	if err != nil {
		return err
	}
	if ok && identity.CompareNames(identity.StampedName(have), identity.StampedName(s), keys) <= 0 {
		return nil
	}
	// Each sister may have given as many as one may have.
	if err := r.enter(ctx, s, maxNamesEach*len(keys)); err != nil {
		return err
	}
	r.note(func(s *RegisterStats) { s.Returned++ })
	return nil
}

// get returns the stamp that counts.
func (r *Register) get(name string) (identity.NameStamp, bool, error) {
	var raw []byte
	err := r.cfg.DB.View(func(tx *storage.Tx) (err error) {
		raw, err = tx.Get(registeredKey(name))
		return err
	})
	if errors.Is(err, storage.ErrNotFound) {
		return identity.NameStamp{}, false, nil
	}
	if err != nil {
		return identity.NameStamp{}, false, fmt.Errorf("reading the register: %w", err)
	}
	s, err := identity.ParseNameStamp(raw)
	if err != nil {
		return identity.NameStamp{}, false, fmt.Errorf("reading the register: %w", err)
	}
	return s, true, nil
}

// enter writes a stamp durably in place of what is there. The caller holds writing.
func (r *Register) enter(ctx context.Context, s identity.NameStamp, most int) error {
	name, a := s.Claim.Name, s.Claim.Account
	added := false
	err := r.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		added = false
		n := 0
		opts := storage.ScanOptions{Prefix: holdsKey(a, ""), KeysOnly: true, Limit: most}
		err := tx.Scan(opts, func(key, _ []byte) (bool, error) {
			if string(key) != string(holdsKey(a, name)) {
				n++
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		raw, err := tx.Get(registeredKey(name))
		switch {
		case errors.Is(err, storage.ErrNotFound):
			added = true
			r.mu.Lock()
			full := r.names >= maxRegistered
			r.mu.Unlock()
			if full {
				return errFull
			}
		case err != nil:
			return err
		default:
			if old, err := identity.ParseNameStamp(raw); err == nil && old.Claim.Account != a {
				if err := tx.Delete(holdsKey(old.Claim.Account, name)); err != nil {
					return err
				}
			}
		}
		if n >= most {
			return errFull
		}
		if err := tx.Set(holdsKey(a, name), nil); err != nil {
			return err
		}
		return tx.Set(registeredKey(name), s.Raw())
	})
	if err != nil {
		return fmt.Errorf("writing the register: %w", err)
	}
	if added {
		r.mu.Lock()
		r.names++
		r.mu.Unlock()
	}
	return nil
}

// askSisters asks the network's other bootstrap nodes who has a name.
func (r *Register) askSisters(ctx context.Context, name string) []identity.NameStamp {
	link := r.cfg.Link()
	ctx, cancel := context.WithTimeout(ctx, sisterTimeout)
	defer cancel()
	var mu sync.Mutex
	var out []identity.NameStamp
	var wg sync.WaitGroup
	for _, b := range link.Bootstraps {
		if b.Device == r.cfg.Key.ID() || r.asks == nil {
			continue
		}
		wg.Go(func() {
			start := time.Now()
			a, err := r.asks.name(ctx, b.Device, b.Addrs, lookupName(name))
			if err != nil {
				r.log.Debug("asking a sister", "device", b.Device.Short(), "took", time.Since(start), "error", err)
				return
			}
			if stampFits(a.stamp, link.ID(), name, link.Keys()) {
				mu.Lock()
				defer mu.Unlock()
				out = append(out, a.stamp)
			}
		})
	}
	wg.Wait()
	return out
}
