package main

import (
	"hima/internal/control/pb"
	"hima/internal/text"
)

// The views of networks, names and mailboxes; view.go says what views are.

type networkNameView struct {
	Network   string `json:"network"`
	NetworkID string `json:"network_id"`
	Username  string `json:"username"`
	State     string `json:"state"`
	Since     string `json:"since"`
	Holder    string `json:"holder"`
}

func networkNameOf(n *pb.NetworkName) networkNameView {
	return networkNameView{
		Network: name(n.GetNetwork()), NetworkID: plain(n.GetNetworkId()), Username: name(n.GetUsername()),
		State: plain(n.GetState()), Since: stamp(n.GetSinceMs()), Holder: plain(n.GetHolder()),
	}
}

func networkNamesOf(all []*pb.NetworkName) []networkNameView {
	out := []networkNameView{}
	for _, n := range all {
		out = append(out, networkNameOf(n))
	}
	return out
}

type networkView struct {
	ID         string          `json:"id"`
	Name       string          `json:"name"`
	Link       string          `json:"link"`
	Online     bool            `json:"online"`
	DHTPeers   int32           `json:"dht_peers"`
	Bootstraps []bootstrapView `json:"bootstraps"`
	Username   networkNameView `json:"username"`
	Joined     string          `json:"joined"`
	Published  string          `json:"published"`
}

type bootstrapView struct {
	Device    string   `json:"device"`
	Addresses []string `json:"addresses"`
	Connected bool     `json:"connected"`
	Serves    []string `json:"serves"`
	RTTMicros int64    `json:"rtt_us"`
	Reserved  bool     `json:"reserved"`
	Error     string   `json:"error"`
}

func networkOf(n *pb.Network) networkView {
	v := networkView{
		ID: plain(n.GetId()), Name: name(n.GetName()), Link: text.OneLine(n.GetLink(), maxLinkCells), Online: n.GetOnline(),
		DHTPeers: n.GetDhtPeers(), Bootstraps: []bootstrapView{}, Username: networkNameOf(n.GetUsername()),
		Joined: stamp(n.GetJoinedMs()), Published: stamp(n.GetPublishedMs()),
	}
	for _, b := range n.GetBootstraps() {
		v.Bootstraps = append(v.Bootstraps, bootstrapView{
			Device: plain(b.GetDevice()), Addresses: plainAll(b.GetAddresses()), Connected: b.GetConnected(),
			Serves: plainAll(b.GetServes()), RTTMicros: b.GetRttUs(), Reserved: b.GetReserved(), Error: plain(b.GetError()),
		})
	}
	return v
}

func networksOf(all []*pb.Network) []networkView {
	out := []networkView{}
	for _, n := range all {
		out = append(out, networkOf(n))
	}
	return out
}

// connected counts the bootstrap nodes that answer.
func (v networkView) connected() (n int) {
	for _, b := range v.Bootstraps {
		if b.Connected {
			n++
		}
	}
	return n
}

// joinedView is the answer to "network join".
type joinedView struct {
	networkView
	Added bool `json:"added"`
}

type searchView struct {
	Account      string `json:"account"`
	Username     string `json:"username"`
	Nickname     string `json:"nickname"`
	Confirmed    bool   `json:"confirmed"`
	Since        string `json:"since"`
	Source       string `json:"source"`
	Network      string `json:"network"`
	Relation     string `json:"relation"`
	Disagreement bool   `json:"disagreement"` // of the whole answer
}

func searchOf(r *pb.SearchResult, disagreement bool) searchView {
	return searchView{
		Account: plain(r.GetAccount()), Username: name(r.GetUsername()), Nickname: name(r.GetNickname()),
		Confirmed: r.GetConfirmed(), Since: stamp(r.GetSinceMs()), Source: plain(r.GetSource()), Network: name(r.GetNetwork()),
		Relation: plain(r.GetRelation()), Disagreement: disagreement,
	}
}

type checkView struct {
	ID     string            `json:"id"`
	State  string            `json:"state"`
	Detail string            `json:"detail"`
	Values map[string]string `json:"values"`
}

func checkOf(c *pb.Check) checkView {
	v := checkView{ID: plain(c.GetId()), State: plain(c.GetState()), Detail: plain(c.GetDetail()), Values: map[string]string{}}
	for key, value := range c.GetValues() {
		v.Values[plain(key)] = plain(value)
	}
	return v
}

// Mailboxes and offers are lines of one list; kind tells them apart.
const (
	kindMailbox  = "mailbox"  // keeps mail for this node
	kindOffer    = "offer"    // this node keeps mail for a contact
	kindReceived = "received" // a contact would keep mail for this node, which does not use it
)

type mailboxView struct {
	Kind      string   `json:"kind"`
	Device    string   `json:"device"`
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	Source    string   `json:"source"`
	State     string   `json:"state"`
	Connected bool     `json:"connected"`
	Inboxes   int32    `json:"inboxes"`
	Waiting   int32    `json:"waiting"`
	Used      uint64   `json:"used_bytes"`
	Quota     uint64   `json:"quota_bytes"`
	ExpiryMS  int64    `json:"expiry_ms"`
	Emptied   string   `json:"emptied"`
	Error     string   `json:"error"`
}

func mailboxOf(m *pb.Mailbox) mailboxView {
	return mailboxView{
		Kind: kindMailbox, Device: plain(m.GetDevice()), Name: name(m.GetName()), Addresses: plainAll(m.GetAddresses()),
		Source: plain(m.GetSource()), State: plain(m.GetState()), Connected: m.GetConnected(), Inboxes: m.GetInboxes(),
		Waiting: m.GetWaiting(), Used: m.GetUsedBytes(), Quota: m.GetQuotaBytes(), ExpiryMS: m.GetExpiryMs(),
		Emptied: stamp(m.GetEmptiedMs()), Error: plain(m.GetError()),
	}
}

type offerView struct {
	Kind    string `json:"kind"`
	Account string `json:"account"`
	Name    string `json:"name"`
	Quota   uint64 `json:"quota_bytes"`
	Used    uint64 `json:"used_bytes"`
	Items   int32  `json:"items"`
}

func offerOf(o *pb.MailboxOffer, kind string) offerView {
	return offerView{
		Kind: kind, Account: plain(o.GetAccount()), Name: name(o.GetName()), Quota: o.GetQuotaBytes(), Used: o.GetUsedBytes(),
		Items: o.GetItems(),
	}
}

type custodyView struct {
	Mailbox string `json:"mailbox"`
	Name    string `json:"name"`
	Since   string `json:"since"`
	Until   string `json:"until"`
	Expired bool   `json:"expired"`
}

func custodyOf(all []*pb.Custody) []custodyView {
	out := []custodyView{}
	for _, c := range all {
		out = append(out, custodyView{
			Mailbox: plain(c.GetMailbox()), Name: name(c.GetName()), Since: stamp(c.GetSinceMs()), Until: stamp(c.GetUntilMs()),
			Expired: c.GetExpired(),
		})
	}
	return out
}
