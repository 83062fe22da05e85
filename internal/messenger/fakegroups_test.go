package messenger

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

// fakeGroup is a group as one person sees it. Tests say what package groups would have found out.
type fakeGroup struct {
	info    groups.Info
	members []groups.Member
	epoch   feed.EntryID
	void    map[place]bool                // acts of others, by number
	cut     map[identity.AccountID]uint64 // of the chat feed of the only device
	joined  uint64                        // clock; what lies before is backlog
	draft   error
}

// saying is one call of Said.
type saying struct {
	from, to identity.AccountID
	kind     feed.Kind
	content  string
}

// fakeGroups is package groups without a roster.
type fakeGroups struct {
	Groups
	p       *person
	groups  map[feed.ConversationID]*fakeGroup
	said    []saying
	listens pb.Code
	invited []groups.Invitation
	applied []replica.Applied
	applies []groups.Application
	targets []groups.Target
	acts    []string
	forks   []replica.Fork
	fellows []identity.AccountID
	later   []feed.ConversationID
	fail    error

	decidedBy            identity.AccountID // whoever turned down what Decide is called for
	remembered, restored []groups.Remembered
	links                []*pb.InviteState
}

func (f *fakeGroups) Is(_ *storage.Tx, conv feed.ConversationID) (bool, error) {
	return f.groups[conv] != nil, nil
}

func (f *fakeGroups) Shared(_ *storage.Tx, a identity.AccountID) (out []feed.ConversationID, err error) {
	for id, g := range f.groups {
		if a == f.p.account || slices.ContainsFunc(g.members, func(m groups.Member) bool { return m.Account == a }) {
			out = append(out, id)
		}
	}
	return out, nil
}

func (f *fakeGroups) others(conv feed.ConversationID, but identity.AccountID) (out []identity.AccountID) {
	for _, m := range f.groups[conv].members {
		if m.Account != but {
			out = append(out, m.Account)
		}
	}
	return out
}

func (f *fakeGroups) Readers(_ *storage.Tx, conv feed.ConversationID) ([]identity.AccountID, error) {
	return f.others(conv, f.p.account), nil
}

func (f *fakeGroups) Window(*storage.Tx, feed.ConversationID, identity.AccountID) (replica.Window, error) {
	return func(feed.FeedID) (uint64, uint64) { return 7, 9 }, nil
}

func (f *fakeGroups) Admit(_ *storage.Tx, in replica.Incoming) (int, pb.Code, error) {
	if f.groups[in.Run.Feed().Conversation] == nil {
		return 0, pb.Code_CODE_NOT_MEMBER, nil
	}
	return len(in.Run.Entries()), pb.Code_CODE_TAKEN, nil
}

func (f *fakeGroups) Applied(_ *storage.Tx, a replica.Applied) error {
	f.applied = append(f.applied, a)
	return nil
}

func (f *fakeGroups) Forked(_ *storage.Tx, fork replica.Fork) error {
	f.forks = append(f.forks, fork)
	return nil
}

func (f *fakeGroups) Draft(_ *storage.Tx, conv feed.ConversationID, kind feed.Kind, content []byte) (replica.Draft, error) {
	g := f.groups[conv]
	return replica.Draft{Conversation: conv, Number: feed.Chat, Kind: kind, Content: content, Epoch: g.epoch[:]}, g.draft
}

func (f *fakeGroups) Audience(_ *storage.Tx, conv feed.ConversationID, h feed.Header) ([]identity.AccountID, error) {
	return f.others(conv, h.Account), nil
}

func (f *fakeGroups) Backlog(_ *storage.Tx, h feed.Header) (bool, error) {
	return h.Clock < f.groups[h.Conversation].joined, nil
}

func (f *fakeGroups) Counts(_ *storage.Tx, e feed.Entry) (bool, error) {
	h := e.Header
	g := f.groups[h.Conversation]
	if h.Number == feed.Control {
		return !g.void[place{seq: h.Seq}] || h.Account == f.p.account, nil
	}
	cut, ok := g.cut[h.Account]
	return !ok || h.Seq <= cut, nil
}

func (f *fakeGroups) Nickname(_ *storage.Tx, id groups.ID, a identity.AccountID) (string, error) {
	if g := f.groups[id]; g != nil {
		for _, m := range g.members {
			if m.Account == a {
				return m.Nickname, nil
			}
		}
	}
	return "", nil
}

func (f *fakeGroups) Said(_ *storage.Tx, from, to identity.AccountID, kind feed.Kind, content []byte, _ time.Time) error {
	f.said = append(f.said, saying{from, to, kind, string(content)})
	return nil
}

func (f *fakeGroups) Listens(*storage.Tx, identity.AccountID, feed.Kind, []byte) (pb.Code, error) {
	return f.listens, nil
}

func (f *fakeGroups) Fellow(_ *storage.Tx, a identity.AccountID) (bool, error) {
	return slices.Contains(f.fellows, a), nil
}

func (f *fakeGroups) Later(conv feed.ConversationID) { f.later = append(f.later, conv) }

func (f *fakeGroups) Info(_ *storage.Tx, id groups.ID) (groups.Info, error) {
	if g := f.groups[id]; g != nil {
		info := g.info
		info.Size = len(g.members)
		return info, nil
	}
	return groups.Info{}, groups.ErrNotFound
}

func (f *fakeGroups) List(tx *storage.Tx) (out []groups.Info, err error) {
	for id := range f.groups {
		info, err := f.Info(tx, id)
		if err != nil {
			return nil, err
		}
		out = append(out, info)
	}
	return out, nil
}

func (f *fakeGroups) Members(_ *storage.Tx, id groups.ID) ([]groups.Member, error) {
	if f.groups[id] == nil {
		return nil, groups.ErrNotFound
	}
	return f.groups[id].members, nil
}

func (f *fakeGroups) Find(tx *storage.Tx, name string) (out []groups.Info, err error) {
	list, err := f.List(tx)
	for _, i := range list {
		if text.FoldName(i.Name) == text.FoldName(name) || len(name) >= 4 && strings.HasPrefix(i.ID.String(), strings.ToLower(name)) {
			out = append(out, i)
		}
	}
	return out, err
}

func (f *fakeGroups) Invitations(*storage.Tx) ([]groups.Invitation, error) { return f.invited, nil }

func (f *fakeGroups) Applications(*storage.Tx, groups.ID) ([]groups.Application, error) {
	return f.applies, nil
}

func (f *fakeGroups) Remembered(*storage.Tx) ([]groups.Remembered, error) { return f.remembered, nil }

func (f *fakeGroups) Restore(_ *storage.Tx, g groups.Remembered) (bool, error) {
	f.restored = append(f.restored, g)
	return len(g.Members) > 0, nil
}

func (f *fakeGroups) act(name string, a identity.AccountID) error {
	f.acts = append(f.acts, name+" "+a.Short())
	return f.fail
}

func (f *fakeGroups) Invite(_ context.Context, _ groups.ID, a identity.AccountID) (string, error) {
	return "invited", f.act("invite", a)
}

func (f *fakeGroups) Remove(_ context.Context, _ groups.ID, a identity.AccountID) error {
	return f.act("remove", a)
}

func (f *fakeGroups) Leave(context.Context, groups.ID) error {
	return f.act("leave", f.p.account)
}

func (f *fakeGroups) Answer(_ context.Context, id groups.ID, accept bool) (groups.Info, error) {
	name := "decline"
	if accept {
		name = "accept"
	}
	return groups.Info{ID: id, Name: "answered"}, f.act(name, f.p.account)
}

func (f *fakeGroups) Decide(_ context.Context, id groups.ID, a identity.AccountID, approve bool, reason string) (groups.Application, error) {
	return groups.Application{Group: id, Account: a, State: groups.Rejected, Reason: reason, By: f.decidedBy}, f.act("decide", a)
}

func (f *fakeGroups) Apply(_ context.Context, t groups.Target, _ string) (groups.Info, error) {
	f.targets = append(f.targets, t)
	f.groups[t.Group] = &fakeGroup{info: groups.Info{ID: t.Group, Name: t.Name, State: groups.StateApplied}}
	return f.groups[t.Group].info, f.fail
}

func (f *fakeGroups) WithdrawApplication(context.Context, groups.ID) error { return f.fail }

func (f *fakeGroups) RevokeLink(context.Context, groups.ID, identity.InviteToken) (groups.Link, error) {
	return groups.Link{}, f.fail
}

// in tells a person that they are in a group with others, and since which clock.
func (p *person) in(id groups.ID, name string, joined uint64, members ...*person) *fakeGroup {
	g := &fakeGroup{
		info: groups.Info{ID: id, Name: name, State: groups.StateMember, Role: groups.RoleMember}, joined: joined,
		epoch: feed.EntryID{1, 2, 3}, void: make(map[place]bool), cut: make(map[identity.AccountID]uint64),
	}
	for _, o := range members {
		g.members = append(g.members, groups.Member{Account: o.account, Role: groups.RoleMember})
	}
	p.groups.groups[id] = g
	return g
}

// writeAct writes an own act, as package groups would.
func (p *person) writeAct(conv groups.ID, kind feed.Kind, content proto.Message) feed.Entry {
	p.t.Helper()
	b, err := proto.Marshal(content)
	require.NoError(p.t, err)
	var out []feed.Entry
	require.NoError(p.t, p.db.Update(context.Background(), func(tx *storage.Tx) error {
		d := replica.Draft{Conversation: conv, Number: feed.Control, Kind: kind, Content: b, Time: p.clock}
		if kind == feed.KindGroupCreate {
			d.Genesis = slices.Repeat([]byte{9}, 32)
		}
		out, err = p.m.AppendGroup(tx, d)
		return err
	}))
	return out[0]
}

// consentOf is what the act that admits somebody holds.
func (p *person) consentOf(group groups.ID) []byte {
	p.t.Helper()
	c, err := identity.NewConsent(p.key, identity.Consent{
		Group: identity.GroupID(group), Certificate: p.cert, Time: p.clock, Expires: p.clock.Add(time.Hour),
	})
	require.NoError(p.t, err)
	return c.Raw()
}

// crowd makes some people who are in one group that the first of them made.
func crowd(t testing.TB, names ...string) (id groups.ID, people []*person) {
	t.Helper()
	for _, name := range names {
		people = append(people, newPerson(t, name))
	}
	owner := people[0]
	id = owner.writeAct(groups.ID{}, feed.KindGroupCreate, &pb.GroupCreate{}).Conversation
	for _, p := range people {
		p.in(id, "Hikers", 0, people...)
	}
	for _, p := range people[1:] {
		owner.writeAct(id, feed.KindGroupAdmit, &pb.GroupAdmit{Consent: p.consentOf(id)})
	}
	gather(t, people...)
	return id, people
}

// gather lets everybody meet everybody.
func gather(t testing.TB, people ...*person) {
	t.Helper()
	for i, a := range people {
		for _, b := range people[i+1:] {
			meet(t, a, b)
		}
	}
}

// tells sends a text to a group.
func (p *person) tells(name, words string) Message {
	p.t.Helper()
	msg, err := p.m.Send(context.Background(), SendInput{Who: name, Text: words})
	require.NoError(p.t, err)
	return msg
}

// lines lists the history of a group as "name: text" or "name kind subject".
func (p *person) lines(group string) (out []string) {
	p.t.Helper()
	for _, msg := range p.history(group) {
		line := msg.AuthorName + ": " + msg.Text
		if msg.Kind != MessageText {
			line = strings.Join(strings.Fields(msg.AuthorName+" "+string(msg.Kind)+" "+msg.SubjectName+" "+msg.Text), " ")
		}
		if msg.Backlog {
			line = "(" + line + ")"
		}
		out = append(out, line)
	}
	return out
}
