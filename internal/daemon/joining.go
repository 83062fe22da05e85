package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/directory"
	"hima/node"
)

const (
	// checkPatience is how long a network may take to say whether a name is free, and what it knows of a restored account.
	checkPatience = 15 * time.Second
	// recordPatience is the part of it that is given to the look-up of a restored account's record.
	recordPatience = 10 * time.Second
)

// entrance is what was found out about a network before a profile on it is made.
type entrance struct {
	link   identity.NetworkLink
	away   bool   // nobody who decides about names answered
	record []byte // the account's record as the network knows it; nil: none
}

// approach looks at a network from outside, as a node that nobody knows: whether the name can be had there, and, for an
// account that is restored, what its record is. Nothing of the profile exists yet, and nothing is left behind.
func (p *profile) approach(ctx context.Context, link, name string, account identity.AccountID, restore bool) (entrance, error) {
	var e entrance
	key := identity.GenerateDeviceKey()
	n, err := node.New(node.Config{Key: key, Listen: fixedPort(p.config.Settings.Listen, 0), Internet: true, Version: control.Release, Logger: p.log})
	if err != nil {
		return e, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	g, run := errgroup.WithContext(ctx)
	running, stop := context.WithCancel(run)
	g.Go(func() error { return ignoreCancelled(n.Run(running)) })
	defer func() {
		stop()
		if err := errors.Join(g.Wait(), n.Close()); err != nil {
			p.log.Debug("closing the node that asked for a name", "err", err)
		}
	}()
	if e.link, err = directory.ReadLink(ctx, n, strings.TrimSpace(link)); err != nil {
		return e, refusal(err)
	}
	var boots []node.Bootstrap
	for _, b := range e.link.Bootstraps {
		boots = append(boots, node.Bootstrap{Device: b.Device, Addrs: b.Addrs})
	}
	n.SetBootstraps(boots)
	err = directory.CheckName(ctx, n, e.link, name, account)
	switch t, isTaken := errors.AsType[*directory.NameTakenError](err); {
	case isTaken:
		return e, nameTaken(t, e.link.Name)
	case errors.Is(err, directory.ErrUnreachable):
		e.away = true
	case err != nil:
		return e, err
	}
	if restore && !e.away {
		if e.record, err = p.recordOf(ctx, n, e.link, boots, account); err != nil {
			p.log.Info("looking for the account's record", "err", err)
		}
	}
	return e, nil
}

// recordOf asks the network's table for an account's record.
func (p *profile) recordOf(ctx context.Context, n *node.Node, link identity.NetworkLink, boots []node.Bootstrap, account identity.AccountID) (raw []byte, err error) {
	c := directory.TableConfig(link.ID(), link.Keys, p.now)
	c.Bootstraps = func() []node.Bootstrap { return boots }
	table, err := n.NewDHT(c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, recordPatience)
	defer cancel()
	running, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return ignoreCancelled(table.Run(running)) })
	defer func() {
		stop()
		err = errors.Join(err, g.Wait(), table.Close())
	}()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for table.Peers() == 0 { // the first nodes are being met
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
	raw, err = table.Get(ctx, identity.AccountRecordKey(account))
	if errors.Is(err, node.ErrNoRecord) {
		return nil, nil
	}
	return raw, err
}

func ignoreCancelled(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// nameTaken says who has a name.
func nameTaken(t *directory.NameTakenError, network string) error {
	return &control.Error{
		Code: control.Exists, Cause: t,
		Message:    fmt.Sprintf("the username %s is registered on %s by %s since %s", t.Name, network, t.Holder.Short(), t.Since.UTC().Format(time.DateOnly)),
		Hint:       "choose another username; nothing was made",
		Candidates: []control.Candidate{{Account: t.Holder.String(), Username: t.Name, Source: "network"}},
	}
}

// enter joins the network that was looked at and claims the name there. It returns the state for the answer and whether
// the name is still to be confirmed.
func (u *unlocked) enter(ctx context.Context, e entrance, name string) (s directory.NetworkState, pending bool, err error) {
	s, _, err = u.directory.JoinNetwork(ctx, e.link.String())
	if err != nil {
		return s, false, refusal(err)
	}
	bounded, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	st, err := u.directory.ClaimName(bounded, s.ID, name)
	if t, ok := errors.AsType[*directory.NameTakenError](err); ok {
		// Somebody was faster, within a second: the account is there, the name on this network is another's.
		u.onNameLost(s.ID, t)
		return s, false, nil
	}
	if err != nil && ctx.Err() == nil {
		u.log.Info("claiming the username", "err", err)
	}
	s = u.present(s)
	return s, st.State != directory.NameConfirmed, ctx.Err()
}

func dialErrors() []error {
	return []error{node.ErrUnreachable, node.ErrNoAddress, node.ErrNotSpoken, node.ErrWrongDevice, context.DeadlineExceeded}
}
