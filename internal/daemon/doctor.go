package daemon

import (
	"context"
	"net"
	"strconv"
	"time"

	"hima/identity"
	"hima/internal/control/pb"
	"hima/internal/delivery"
	"hima/internal/directory"
	"hima/node"
)

// The states of a check.
const (
	checkOK      = "ok"
	checkWarning = "warning"
	checkProblem = "problem"
	checkOff     = "off" // not in use here
)

const (
	// lowDisk is when room gets scarce, fullDisk when it is gone.
	lowDisk  = 512 << 20
	fullDisk = leastFree
	// bootstrapSkew is how far a clock may differ from a bootstrap node's; beyond it stamps and receipts look odd.
	bootstrapSkew = time.Minute
	// stalePublished is how long ago the records may have been seen on a network: they go there twice a day.
	stalePublished = 36 * time.Hour
	// settlePatience is how long after the start a thing may still be under way.
	settlePatience = 30 * time.Second
)

// examination collects what is found.
type examination struct {
	u        *unlocked
	p        *profile
	networks []directory.NetworkState
	reach    node.Reachability
	boots    []node.BootstrapState
	young    bool // started a moment ago
	checks   []*pb.Check
}

func (x *examination) say(id, state, detail string, values map[string]string) {
	x.checks = append(x.checks, &pb.Check{Id: id, State: state, Detail: detail, Values: values})
}

type values = map[string]string

func number[T int | int64 | uint64](n T) string { return strconv.FormatInt(int64(n), 10) }

func inMillis(d time.Duration) string { return number(d.Milliseconds()) }

// Doctor implements server.Network. A check that is ok or off needs nothing; a warning or a problem has something to be
// done, which the catalogue of the face knows by its codes.
func (n networking) Doctor(ctx context.Context, _ *pb.DoctorRequest) (*pb.DoctorResponse, error) {
	u := n.u
	x := &examination{
		u: u, p: n.p, networks: u.directory.Networks(), reach: u.node.Reachability(), boots: u.node.Bootstraps(),
		young: u.now().Sub(u.opened) < settlePatience,
	}
	x.interfaces()
	x.reachability()
	x.relays()
	for _, s := range x.networks {
		x.table(s)
		x.name(s)
		x.record(s)
	}
	if len(x.networks) == 0 {
		x.say("dht", checkOff, "no_network", nil)
		x.say("record", checkOff, "no_network", nil)
	}
	if err := x.mailboxes(); err != nil {
		return nil, err
	}
	if err := x.groups(ctx); err != nil {
		return nil, err
	}
	x.multicast()
	x.clock(ctx)
	x.machine()
	out := &pb.DoctorResponse{Checks: x.checks, Well: true}
	for _, c := range x.checks {
		out.Well = out.Well && c.GetState() != checkProblem
	}
	return out, nil
}

func (x *examination) interfaces() {
	count := 0
	all, err := net.Interfaces()
	for _, i := range all {
		if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagLoopback == 0 {
			count++
		}
	}
	if err != nil || count == 0 {
		x.say("interfaces", checkProblem, "none", nil)
		return
	}
	x.say("interfaces", checkOK, "found", values{"count": number(count)})
}

func (x *examination) reachability() {
	switch {
	case len(x.networks) == 0:
		x.say("reachability", checkOff, "no_network", nil)
	case !x.reach.Online && x.young:
		x.say("reachability", checkWarning, "unknown", nil)
	case !x.reach.Online:
		x.say("reachability", checkProblem, "offline", nil)
	case x.reach.Public:
		x.say("reachability", checkOK, "public", values{"address": x.publicAddress()})
	case len(x.reach.RelayAddrs) > 0:
		x.say("reachability", checkOK, "relayed", nil)
	default:
		x.say("reachability", checkWarning, "unknown", nil)
	}
	switch {
	case len(x.reach.Mapped) > 0:
		x.say("nat", checkOK, "mapped", nil)
	case x.reach.NAT == node.NATNone, x.reach.NAT == node.NATCone:
		x.say("nat", checkOK, x.reach.NAT, nil)
	case x.reach.NAT == node.NATSymmetric:
		x.say("nat", checkWarning, x.reach.NAT, nil)
	default:
		x.say("nat", checkOff, "unknown", nil)
	}
}

// publicAddress is one at which this node is reached from outside.
func (x *examination) publicAddress() string {
	for _, list := range [][]string{x.p.config.Settings.Announce, x.reach.Mapped, x.reach.Observed, x.u.node.Addrs()} {
		if len(list) > 0 {
			return list[0]
		}
	}
	return ""
}

func (x *examination) relays() {
	offered, reserved, limited, why := 0, 0, 0, ""
	var limits node.RelayLimits
	for _, n := range x.networks {
		for _, b := range n.Bootstraps {
			for _, s := range b.Serves {
				if s == directory.ServeRelay {
					offered++
				}
			}
		}
	}
	for _, b := range x.boots {
		switch {
		case b.Reserved:
			reserved++
			if !b.Limits.IsZero() {
				limited, limits = limited+1, b.Limits
			}
		case b.Error != "":
			why = b.Error
		}
	}
	switch {
	case len(x.networks) == 0:
		x.say("relay", checkOff, "no_network", nil)
	case reserved > 0:
		x.say("relay", checkOK, "reserved", values{"count": number(reserved)})
	case x.reach.Public:
		x.say("relay", checkOff, "not_needed", nil)
	case offered == 0 && x.reach.Online:
		x.say("relay", checkWarning, "none_offered", nil)
	case x.young:
		x.say("relay", checkWarning, "no_slot", values{"error": why})
	default:
		x.say("relay", checkProblem, "no_slot", values{"error": why})
	}
	switch {
	case reserved == 0:
		x.say("relay_limits", checkOff, "unknown", nil)
	case limited == reserved:
		x.say("relay_limits", checkWarning, "limited", values{"time_for_ms": inMillis(limits.Duration), "limit_bytes": number(limits.Data)})
	default:
		x.say("relay_limits", checkOK, "none", nil)
	}
}

func (x *examination) table(s directory.NetworkState) {
	if s.DHTPeers == 0 {
		state := checkProblem
		if x.young {
			state = checkWarning
		}
		x.say("dht", state, "empty", values{"network": s.Name})
		return
	}
	x.say("dht", checkOK, "peers", values{"network": s.Name, "count": number(s.DHTPeers)})
}

func (x *examination) name(s directory.NetworkState) {
	name := x.u.nameOn(s)
	v := values{"network": s.Name, "username": name.Name}
	switch name.State {
	case directory.NameConfirmed:
		x.say("name", checkOK, "confirmed", v)
	case directory.NamePending:
		x.say("name", checkWarning, "pending", v)
	case directory.NameUnconfirmed:
		x.say("name", checkWarning, "unconfirmed", v)
	case directory.NameLost:
		v["holder"] = name.Holder.Short()
		x.say("name", checkProblem, "lost", v)
	default:
		x.say("name", checkOff, "none", values{"network": s.Name})
	}
}

func (x *examination) record(s directory.NetworkState) {
	v := values{"network": s.Name, "time_at_ms": number(millis(s.Published))}
	switch {
	case s.Published.IsZero():
		x.say("record", checkWarning, "not_yet", values{"network": s.Name})
	case x.u.now().Sub(s.Published) > stalePublished:
		x.say("record", checkWarning, "stale", v)
	default:
		x.say("record", checkOK, "published", v)
	}
}

func (x *examination) mailboxes() error {
	ready, bad := 0, false
	for _, b := range x.u.mail.Boxes() {
		switch b.State {
		case delivery.BoxOK:
			ready++
		case delivery.BoxUnreachable, delivery.BoxFull, delivery.BoxDenied:
			name, err := x.u.boxName(b.Device)
			if err != nil {
				return err
			}
			v := values{"name": name}
			if b.State == delivery.BoxUnreachable {
				v["error"] = b.Error
			}
			x.say("mailbox", checkWarning, b.State, v)
			bad = true
		}
	}
	switch {
	case ready > 0:
		x.say("mailbox", checkOK, "ready", values{"count": number(ready)})
	case bad:
	case len(x.networks) == 0:
		x.say("mailbox", checkOff, "none", nil)
	default:
		x.say("mailbox", checkWarning, "none", nil)
	}
	return nil
}

func (x *examination) multicast() {
	switch {
	case !x.p.config.Settings.multicast():
		x.say("multicast", checkOff, "off", nil)
	case x.u.node.Multicast():
		x.say("multicast", checkOK, "works", nil)
	default:
		x.say("multicast", checkWarning, "none", nil)
	}
}

// clock compares the own clock with those of connected people and of mailboxes.
func (x *examination) clock(ctx context.Context) {
	var worst time.Duration
	heard := false
	hear := func(skew, noise time.Duration) {
		heard = true
		if skew.Abs()-noise > worst.Abs() {
			worst = skew
		}
	}
	for _, s := range x.u.replica.Sessions() {
		hear(s.Skew, s.RTT)
	}
	told := map[identity.DeviceID]bool{}
	for _, n := range x.networks {
		for _, b := range n.Bootstraps {
			if !b.Asked.IsZero() && b.Connected {
				told[b.Device] = true
				hear(b.Skew, b.RTT)
			}
		}
	}
	for _, b := range x.u.mail.Boxes() {
		if !b.Connected || told[b.Device] {
			continue
		}
		ask, cancel := context.WithTimeout(ctx, 2*time.Second)
		asked := x.u.now()
		t, err := x.u.client.Terms(ask, refOf(b))
		cancel()
		if err == nil && !t.Time.IsZero() {
			trip := x.u.now().Sub(asked)
			hear(t.Time.Sub(asked.Add(trip/2)), trip)
		}
	}
	switch {
	case !heard:
		x.say("clock", checkOff, "nobody", nil)
	case worst.Abs() > bootstrapSkew:
		x.say("clock", checkWarning, "skew", values{"skew_for_ms": inMillis(worst)})
	default:
		x.say("clock", checkOK, "fits", values{"skew_for_ms": inMillis(worst)})
	}
}

// machine looks at disk and memory.
func (x *examination) machine() {
	free := freeSpace(x.u.dir)
	v := values{"free_bytes": number(free)}
	switch {
	case free < fullDisk:
		x.say("disk", checkProblem, "full", v)
	case free < lowDisk:
		x.say("disk", checkWarning, "low", v)
	default:
		x.say("disk", checkOK, "room", v)
	}
	limit, err := x.p.config.Settings.memory()
	if err != nil {
		return
	}
	used := memoryInUse()
	m := values{"used_bytes": number(used), "limit_bytes": number(limit)}
	if x.p.config.OwnProcess && used > uint64(limit) {
		x.say("memory", checkWarning, "high", m)
		return
	}
	x.say("memory", checkOK, "fits", m)
}
