package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/text"
)

// IDs as long as real ones, since how much of them is shown is part of what is tested.
const (
	idAlice   = "hima1qqqqalice00000000000000000000000000000000000000000000000"
	idBob     = "hima1qqqqbob0000000000000000000000000000000000000000000000000"
	idCarol   = "hima1qqqqcarol000000000000000000000000000000000000000000000000"
	devOne    = "12D3KooWOneOneOneOneOneOneOneOneOneOneOneOneOneOneOn"
	devTwo    = "12D3KooWTwoTwoTwoTwoTwoTwoTwoTwoTwoTwoTwoTwoTwoTwoTw"
	netDemo   = "demodemodemodemodemodemodemodemodemodemodemodemodemo"
	netFriend = "frndfrndfrndfrndfrndfrndfrndfrndfrndfrndfrndfrndfrnd"
	longAgo   = 1767225600000 // 2026-01-01, so that the date is always shown
)

// fakeInternet is a node with two networks, one of which is away.
func fakeInternet() *fakeNode {
	demo := &pb.Network{
		Id: netDemo, Name: "demo", Link: "hima-net:aaaa", Online: true, DhtPeers: 12, JoinedMs: longAgo, PublishedMs: longAgo,
		Bootstraps: []*pb.Bootstrap{
			{Device: devOne, Addresses: []string{"/ip4/192.0.2.1/tcp/7447"}, Connected: true, Serves: []string{"dht", "relay"}, RttUs: 31_000, Reserved: true},
			{Device: devTwo, Addresses: []string{"/ip4/192.0.2.2/tcp/7447"}, Error: "no route to host"},
		},
		Username: &pb.NetworkName{Network: "demo", NetworkId: netDemo, Username: "alice", State: "confirmed", SinceMs: longAgo},
	}
	friends := &pb.Network{
		Id: netFriend, Name: "friends", Link: "hima-net:bbbb", JoinedMs: longAgo,
		Bootstraps: []*pb.Bootstrap{{Device: devTwo, Addresses: []string{"/ip4/192.0.2.2/tcp/7447"}, Error: "timeout"}},
		Username:   &pb.NetworkName{Network: "friends", NetworkId: netFriend, Username: "alice", State: "lost", Holder: idCarol},
	}
	return &fakeNode{
		networks: []*pb.Network{demo, friends},
		joined:   &pb.JoinNetworkResponse{Network: demo, Added: true},
		found: &pb.SearchResponse{
			Results: []*pb.SearchResult{
				{Account: idBob, Username: "bob", Nickname: "Bob\x1b[31m", Confirmed: true, SinceMs: longAgo, Source: "network", Network: "demo", Relation: "none"},
				{Account: idCarol, Username: "bob", Source: "nearby", Relation: "contact"},
			},
			Disagreement: true, Unreachable: []string{"friends"},
		},
		find: func(string) (*pb.FindResponse, error) {
			return &pb.FindResponse{Account: idBob, Username: "bob", Nickname: "Bob", Source: "network", Confirmed: true, Network: "demo", SinceMs: longAgo}, nil
		},
		added: &pb.AddContactResponse{Contact: &pb.Contact{Account: idBob, Username: "bob", Relation: "asked"}, Joined: []string{"demo"}},
		mailboxes: &pb.ListMailboxesResponse{
			Mailboxes: []*pb.Mailbox{
				{
					Device: devOne, Name: "demo", Addresses: []string{"/ip4/192.0.2.1/tcp/7447"}, Source: "network", State: "ok", Connected: true,
					Inboxes: 3, Waiting: 2, UsedBytes: 3000, QuotaBytes: 16 << 20, ExpiryMs: 30 * 24 * 3600 * 1000, EmptiedMs: longAgo,
				},
				{Device: devTwo, Name: "bob", Source: "contact", State: "retiring", Error: "timeout"},
			},
			Offers:   []*pb.MailboxOffer{{Account: idCarol, Name: "Carol", QuotaBytes: 64 << 20, UsedBytes: 5 << 20, Items: 7}},
			Received: []*pb.MailboxOffer{{Account: idBob, Name: "Bob", QuotaBytes: 16 << 20}},
		},
		profile: &pb.Profile{
			Account: idAlice, Device: devOne, Username: "alice", Nickname: "Ali", Invite: "hima:x",
			Names: []*pb.NetworkName{demo.GetUsername(), friends.GetUsername()},
		},
		why: &pb.WhyResponse{
			Message: &pb.Message{Id: "aa11", State: "sent", Text: "are you there?", Own: true}, Summary: "in_mailbox",
			Devices: []*pb.WhyDevice{{
				Account: idBob, Device: devTwo, Name: "Bob", State: "waiting", NextTryMs: longAgo,
				Custody: []*pb.Custody{
					{Mailbox: devOne, Name: "demo", SinceMs: longAgo, UntilMs: longAgo},
					{Mailbox: devTwo, SinceMs: longAgo, UntilMs: longAgo, Expired: true},
				},
				Attempts: []*pb.Attempt{
					{TimeMs: longAgo, Road: "mailbox", Address: "/p2p/" + devOne}, {TimeMs: longAgo, Road: "relay", Address: "/p2p-circuit", Error: "timeout"},
				},
			}},
		},
		checks: &pb.DoctorResponse{Checks: []*pb.Check{
			{Id: "interfaces", State: "ok", Detail: "found", Values: map[string]string{"count": "2"}},
			{Id: "nat", State: "warning", Detail: "symmetric"},
			{Id: "relay", State: "problem", Detail: "no_slot", Values: map[string]string{"error": "reservation refused"}},
			{Id: "relay_limits", State: "warning", Detail: "limited", Values: map[string]string{"time_for_ms": "120000", "limit_bytes": "131072"}},
			{Id: "name", State: "problem", Detail: "lost", Values: map[string]string{"username": "alice", "network": "friends", "holder": idCarol}},
			{Id: "record", State: "ok", Detail: "published", Values: map[string]string{"network": "demo", "time_at_ms": "1767225600000"}},
			{Id: "group", State: "warning", Detail: "unreached", Values: map[string]string{"name": "hikers, 爬山\x1b[2J", "groups": idHikers + " " + idOther, "count": "2"}},
			{Id: "group", State: "warning", Detail: "log_failed", Values: map[string]string{"name": "photos", "groups": idPhotos, "count": "1", "error": "no route to host"}},
			{Id: "group", State: "ok", Detail: "work", Values: map[string]string{"count": "3"}},
			{Id: "multicast", State: "off", Detail: "off"},
			{Id: "disk", State: "ok", Detail: "room", Values: map[string]string{"free_bytes": "1073741824"}},
			{Id: "memory", State: "ok", Detail: "fits"},
			{Id: "quantum", State: "warning", Detail: "entangled", Values: map[string]string{"b": "2", "a": "1\x1b[2J"}},
		}},
		events: []*pb.Event{
			{Seq: 1, TimeMs: longAgo, Type: "name", Detail: "lost", Network: "friends", Name: "alice"},
			{Seq: 2, TimeMs: longAgo, Type: "network", Detail: "offline", Network: "demo"},
			{Seq: 3, TimeMs: longAgo, Type: "mailbox", Detail: "full", Device: devOne},
			{Seq: 4, TimeMs: longAgo, Type: "mailbox", Detail: "offered", Account: idBob},
			{Seq: 5, TimeMs: longAgo, Type: "mailbox", Detail: "brand-new", Device: devOne},
		},
	}
}

// TestNetworkAnswers shows every answer about networks, names and mailboxes in both languages and as JSON.
func TestNetworkAnswers(t *testing.T) {
	for _, c := range []struct {
		golden string
		code   int
		args   []string
	}{
		{"network-join", 0, []string{"network", "join", "hima-net:aaaa"}},
		{"network-list", 0, []string{"network", "list"}},
		{"network-leave", 0, []string{"network", "leave", "demo"}},
		{"network-status", 0, []string{"network", "status"}},
		{"network-status-one", 0, []string{"network", "status", "dem"}},
		{"search", 0, []string{"search", "bob"}},
		{"contact-add-name", 0, []string{"contact", "add", "bob"}},
		{"mailbox-list", 0, []string{"mailbox", "list"}},
		{"mailbox-status", 0, []string{"mailbox", "status"}},
		{"mailbox-add", 0, []string{"mailbox", "add", "bob"}},
		{"mailbox-remove", 0, []string{"mailbox", "remove", "bob"}},
		{"mailbox-offer", 0, []string{"mailbox", "offer", "carol", "--quota", "64MiB"}},
		{"doctor", 1, []string{"doctor"}},
		{"whoami-names", 0, []string{"whoami"}},
		{"why-mailbox", 0, []string{"why", "aa11"}},
		{"watch-networks", 0, []string{"watch", "--since", "0", "--count", "5"}},
	} {
		t.Run(c.golden, func(t *testing.T) { fakeInternet().requireAnswers(t, c.golden, c.code, c.args...) })
	}
}

// TestNobodyFound: whoever looks in vain is told what to do next, which depends on what could be asked.
func TestNobodyFound(t *testing.T) {
	nobody := func(code control.Code) func(string) (*pb.FindResponse, error) {
		return func(string) (*pb.FindResponse, error) { return nil, &control.Error{Code: code, Message: "nobody"} }
	}
	f := fakeInternet()
	f.find, f.found = nobody(control.NotFound), &pb.SearchResponse{}
	r := f.do(t, "C", "contact", "add", "zoe")
	require.Equal(t, exitFailed, r.code)
	require.Contains(t, r.stderr, "nobody called zoe was found")
	require.Contains(t, r.stderr, "invite link")
	require.NotContains(t, r.stderr, "network join")
	r = f.do(t, "C", "search", "zoe")
	require.Equal(t, exitFailed, r.code)
	require.Contains(t, r.stderr, "nobody called zoe was found")

	f.found.Unreachable = []string{"demo"}
	r = f.do(t, "C", "search", "zoe")
	require.Equal(t, exitFailed, r.code)
	require.Contains(t, r.stderr, "demo cannot say for certain now")
	require.Contains(t, r.stderr, "network status")

	f.find = nobody(control.Unavailable)
	r = f.do(t, "C", "contact", "add", "zoe")
	require.Equal(t, exitFailed, r.code)
	require.Contains(t, r.stderr, "network status")

	f.networks, f.find = nil, nobody(control.NotFound)
	r = f.do(t, "zh_CN.UTF-8", "contact", "add", "zoe")
	require.Equal(t, exitFailed, r.code)
	require.Contains(t, r.stderr, "hima network join")

	r = f.do(t, "C", "contact", "add", "HIMA-NET:abc")
	require.Equal(t, exitUsage, r.code)
	require.Contains(t, r.stderr, "network join")
	r = f.do(t, "C", "search", "no such name")
	require.Equal(t, exitUsage, r.code)
}

// TestDisagreement: where a network names several accounts a script has to say that it means the one that was found.
func TestDisagreement(t *testing.T) {
	f := fakeInternet()
	f.find = func(string) (*pb.FindResponse, error) {
		return &pb.FindResponse{
			Account: idBob, Username: "bob", Source: "network", Network: "demo", Disagreement: true,
			Others: []*pb.Candidate{{Account: idCarol, Username: "bob", Source: "network"}},
		}, nil
	}
	r := f.do(t, "C", "contact", "add", "bob")
	require.Equal(t, exitUsage, r.code)
	require.Contains(t, r.stderr, idBob)
	require.Contains(t, r.stderr, idCarol)
	require.Nil(t, f.askedAdd)
	r = f.do(t, "C", "contact", "add", "bob", "--yes")
	require.Equal(t, exitOK, r.code)
	require.Equal(t, idBob, f.askedAdd.GetExpectAccount(), "what was found is what is added")
}

// TestNameTaken: a username that somebody else has is refused with the beginning of their ID, in the user's language.
func TestNameTaken(t *testing.T) {
	f := fakeInternet()
	f.refuse = &control.Error{
		Code: control.Exists, Message: "taken", Candidates: []control.Candidate{{Account: idCarol, Username: "carol", Source: "network"}},
	}
	for lang, word := range map[string]string{"C": "registered", "zh_CN.UTF-8": "注册"} {
		r := f.do(t, lang, "profile", "set", "username", "carol")
		require.Equal(t, exitFailed, r.code)
		require.Contains(t, r.stderr, shortAccount(idCarol))
		require.Contains(t, r.stderr, word)
		require.Equal(t, "carol", f.askedSet.GetUsername())
	}
	r := f.do(t, "C", "--json", "profile", "set", "-u", "carol")
	require.Equal(t, exitFailed, r.code)
	require.Contains(t, r.stderr, `"error":"exists"`)
}

// TestNetworkUsage: wrong use is refused before anything is asked.
func TestNetworkUsage(t *testing.T) {
	f := fakeInternet()
	for _, args := range [][]string{
		{"network"},
		{"network", "join"},
		{"network", "leave"},
		{"network", "status", "a", "b"},
		{"search"},
		{"mailbox", "offer", "bob", "--quota", "much"},
		{"mailbox", "add"},
		{"profile", "set", "username"},
		{"profile", "set", "shoe-size", "42"},
		{"profile", "set", "username", "x", "--username", "y"},
		{"bootstrap", "run", "--circuit-time", "soon"},
		{"bootstrap", "run", "--mailbox-expiry", "-1d"},
		{"bootstrap", "run", "--circuit-bytes", "-1"},
		{"bootstrap", "run", "--max-circuits", "0"},
		{"bootstrap", "run", "--log-level", "loud"},
		{"bootstrap", "run", "--serve", "coffee"},
	} {
		r := f.do(t, "C", args...)
		require.Equal(t, exitUsage, r.code, "%v: %v", args, r)
	}
	r := f.do(t, "C", "network", "status", "nowhere")
	require.Equal(t, exitFailed, r.code)
	r = f.do(t, "C", "mailbox", "status", "nowhere")
	require.Equal(t, exitFailed, r.code)
	f.networks = append(f.networks, &pb.Network{Id: "demodemo2", Name: "demo"})
	r = f.do(t, "C", "network", "status", "demo")
	require.Equal(t, exitUsage, r.code)
}

// TestNothingThere: empty lists say what to do.
func TestNothingThere(t *testing.T) {
	f := &fakeNode{mailboxes: &pb.ListMailboxesResponse{}, checks: &pb.DoctorResponse{Well: true}}
	for _, args := range [][]string{{"network", "list"}, {"network", "status"}} {
		r := f.do(t, "C", args...)
		require.Equal(t, exitOK, r.code)
		require.Contains(t, r.stderr, "network join")
	}
	for _, args := range [][]string{{"mailbox", "list"}, {"mailbox", "status"}} {
		r := f.do(t, "C", args...)
		require.Equal(t, exitOK, r.code)
		require.Contains(t, r.stderr, "mailbox offer")
	}
	r := f.do(t, "C", "doctor")
	require.Equal(t, exitOK, r.code)
	require.Contains(t, r.stdout, "All is well")
}

// TestOffer: sizes arrive as bytes, and zero takes an offer back.
func TestOffer(t *testing.T) {
	f := fakeInternet()
	for given, want := range map[string]uint64{"64MiB": 64 << 20, "20 kB": 20_000, "0": 0} {
		r := f.do(t, "C", "mailbox", "offer", "carol", "--quota", given)
		require.Equal(t, exitOK, r.code)
		require.Equal(t, want, f.askedOffer.GetQuotaBytes())
		require.Equal(t, "carol", f.askedOffer.GetWho())
	}
}

// TestNetworkCompletion: networks and mailboxes complete from what the node says.
func TestNetworkCompletion(t *testing.T) {
	f := fakeInternet()
	r := f.do(t, "C", "__complete", "network", "leave", "")
	require.Contains(t, r.stdout, "demo\tdemodemo…\nfriends\tfrndfrnd…\n")
	r = f.do(t, "C", "__complete", "mailbox", "remove", "")
	require.Contains(t, r.stdout, devOne+"\tdemo\n")
	r = f.do(t, "C", "__complete", "bootstrap", "run", "--serve", "")
	require.Contains(t, r.stdout, "relay\n")
	r = f.do(t, "C", "__complete", "profile", "set", "")
	require.Contains(t, r.stdout, "username\n")
}

// TestChecksHaveWords: every finding of the doctor has a sentence, every finding that is not well says what to do, and
// every placeholder of them is one that checks fill.
func TestChecksHaveWords(t *testing.T) {
	a := testApp(t)
	todo := map[string]bool{}
	for id, details := range map[string][]string{
		"interfaces":   {"found", "none!"},
		"reachability": {"public", "relayed", "offline!", "no_network", "unknown!"},
		"nat":          {"none", "cone", "mapped", "symmetric!", "unknown"},
		"relay":        {"reserved", "no_slot!", "not_needed", "no_network", "none_offered!"},
		"relay_limits": {"none", "limited!", "unknown"},
		"dht":          {"peers", "empty!", "no_network"},
		"name":         {"confirmed", "pending!", "lost!", "unconfirmed!", "none", "no_network"},
		"record":       {"published", "not_yet!", "stale!", "no_network"},
		"mailbox":      {"ready", "none!", "unreachable!", "full!", "denied!"},
		"group":        {"work", "none", "no_key!", "log_full!", "log_failed!", "unreached!", "joining!", "read_only!"},
		"multicast":    {"works", "none!", "off"},
		"clock":        {"fits", "skew!", "nobody"},
		"disk":         {"room", "low!", "full!"},
		"memory":       {"fits", "high!"},
	} {
		require.NotEmpty(t, a.tOptional("check."+id))
		for _, d := range details {
			wrong := d[len(d)-1] == '!'
			if wrong {
				d = d[:len(d)-1]
			}
			for _, lang := range []string{text.LangEnglish, text.LangChinese} {
				words := text.NewCatalogue(lang)
				key := "doctor." + id + "." + d
				for _, k := range []string{key, key + ".do"} {
					said := words.T(k, placeholders(checkData(nil, time.Now())))
					require.NotContains(t, said, "<no value>")
					if k == key || wrong {
						require.NotEqual(t, k, said)
					}
				}
			}
			todo[id+"."+d] = true
		}
	}
	require.Greater(t, len(todo), 40)
}
