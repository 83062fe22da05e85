package main

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/internal/control"
	"hima/internal/control/pb"
)

const (
	idHikers = "aaaa1111aaaa1111aaaa1111aaaa1111aaaa1111aaaa1111aaaa1111aaaa1111"
	idPhotos = "bbbb2222bbbb2222bbbb2222bbbb2222bbbb2222bbbb2222bbbb2222bbbb2222"
	idOther  = "cccc3333cccc3333cccc3333cccc3333cccc3333cccc3333cccc3333cccc3333"
	farAhead = 4070908800000 // 2099-01-01
)

// fakeGroups is what a fake node knows of groups.
type fakeGroups struct {
	all          []*pb.Group
	members      []*pb.GroupMember
	invited      []*pb.GroupInvited
	invitations  []*pb.Invitation
	links        []*pb.GroupLinkInfo
	found        *pb.SearchGroupsResponse
	applications []*pb.Application
	history      *pb.HistoryResponse
	talks        []*pb.Conversation

	asked proto.Message // last
}

func (f *fakeNode) one(in proto.Message) *pb.Group {
	f.groups.asked = in
	return f.groups.all[0]
}

func (f *fakeNode) CreateGroup(_ context.Context, in *pb.CreateGroupRequest) (*pb.GroupResponse, error) {
	return &pb.GroupResponse{Group: f.one(in)}, f.refuse
}

func (f *fakeNode) GetGroup(_ context.Context, in *pb.GetGroupRequest) (*pb.GroupResponse, error) {
	return &pb.GroupResponse{Group: f.one(in)}, f.refuse
}

func (f *fakeNode) ListGroups(context.Context, *pb.ListGroupsRequest) (*pb.ListGroupsResponse, error) {
	return &pb.ListGroupsResponse{Groups: f.groups.all}, f.refuse
}

func (f *fakeNode) InviteToGroup(_ context.Context, in *pb.InviteToGroupRequest) (*pb.InviteToGroupResponse, error) {
	return &pb.InviteToGroupResponse{Group: f.one(in), Invited: f.groups.invited}, f.refuse
}

func (f *fakeNode) ListInvitations(context.Context, *pb.ListInvitationsRequest) (*pb.ListInvitationsResponse, error) {
	return &pb.ListInvitationsResponse{Invitations: f.groups.invitations}, f.refuse
}

func (f *fakeNode) AnswerInvitation(_ context.Context, in *pb.AnswerInvitationRequest) (*pb.AnswerInvitationResponse, error) {
	return &pb.AnswerInvitationResponse{Group: f.one(in)}, f.refuse
}

func (f *fakeNode) CreateGroupLink(_ context.Context, in *pb.CreateGroupLinkRequest) (*pb.GroupLinkResponse, error) {
	f.groups.asked = in
	return &pb.GroupLinkResponse{Link: f.groups.links[0]}, f.refuse
}

func (f *fakeNode) ListGroupLinks(context.Context, *pb.ListGroupLinksRequest) (*pb.ListGroupLinksResponse, error) {
	return &pb.ListGroupLinksResponse{Links: f.groups.links}, f.refuse
}

func (f *fakeNode) RevokeGroupLink(_ context.Context, in *pb.RevokeGroupLinkRequest) (*pb.GroupLinkResponse, error) {
	f.groups.asked = in
	return &pb.GroupLinkResponse{Link: f.groups.links[1]}, f.refuse
}

func (f *fakeNode) SearchGroups(context.Context, *pb.SearchGroupsRequest) (*pb.SearchGroupsResponse, error) {
	return f.groups.found, f.refuse
}

func (f *fakeNode) ApplyToGroup(_ context.Context, in *pb.ApplyToGroupRequest) (*pb.ApplyToGroupResponse, error) {
	f.groups.asked = in
	return &pb.ApplyToGroupResponse{Group: f.groups.all[1]}, f.refuse
}

func (f *fakeNode) ListApplications(context.Context, *pb.ListApplicationsRequest) (*pb.ListApplicationsResponse, error) {
	return &pb.ListApplicationsResponse{Applications: f.groups.applications}, f.refuse
}

func (f *fakeNode) DecideApplication(_ context.Context, in *pb.DecideApplicationRequest) (*pb.DecideApplicationResponse, error) {
	f.groups.asked = in
	return &pb.DecideApplicationResponse{Application: f.groups.applications[0]}, f.refuse
}

func (f *fakeNode) ListMembers(context.Context, *pb.ListMembersRequest) (*pb.ListMembersResponse, error) {
	return &pb.ListMembersResponse{Group: f.groups.all[0], Members: f.groups.members}, f.refuse
}

func (f *fakeNode) ActOnGroup(_ context.Context, in *pb.ActOnGroupRequest) (*pb.GroupResponse, error) {
	return &pb.GroupResponse{Group: f.one(in)}, f.refuse
}

func (f *fakeNode) SetGroup(_ context.Context, in *pb.SetGroupRequest) (*pb.GroupResponse, error) {
	return &pb.GroupResponse{Group: f.one(in)}, f.refuse
}

func (f *fakeNode) History(context.Context, *pb.HistoryRequest) (*pb.HistoryResponse, error) {
	return f.groups.history, f.refuse
}

func (f *fakeNode) Conversations(context.Context, *pb.ConversationsRequest) (*pb.ConversationsResponse, error) {
	return &pb.ConversationsResponse{Conversations: f.groups.talks}, f.refuse
}

// fakeClub is a node whose owner runs one group, applied to another, and was asked into a third.
func fakeClub() *fakeNode {
	hikers := &pb.Group{
		Id: idHikers, Name: "hikers", Description: "up\nand down", Announcement: "Saturday at nine\x1b[2J", AnnouncedBy: idBob,
		AnnouncedByName: "Bob", AnnouncedMs: longAgo, Public: true, Join: "apply", Invite: "members", History: "100", Mute: true,
		Role: "owner", State: "member", Size: 3, Owner: idAlice, OwnerName: "Ali", JoinedMs: longAgo, Applications: 2, Nickname: "Chief",
		Mailboxes: []string{devOne},
	}
	photos := &pb.Group{Id: idPhotos, Name: "photos", State: "applied", Join: "apply", Size: 40, Owner: idCarol}
	text := func(id, author, who, said string) *pb.Message {
		return &pb.Message{Id: strings.Repeat(id, 32), Conversation: idHikers, Author: author, AuthorName: who, TimeMs: longAgo, Kind: "text", Text: said}
	}
	act := func(kind, who, whom, said string) *pb.Message {
		return &pb.Message{Id: strings.Repeat("0f", 32), Conversation: idHikers, Author: idBob, AuthorName: who, TimeMs: longAgo, Kind: kind, Subject: idCarol, SubjectName: whom, Text: said}
	}
	own := text("c3", idAlice, "Chief", "see you")
	own.Own, own.State, own.Members, own.DeliveredTo, own.ReadBy = true, "read", 5, 3, 1
	sent := text("c4", idAlice, "Chief", "bring water")
	sent.Own, sent.State, sent.Members = true, "sent", 5
	old := text("a1", idBob, "Bob", "before your time")
	old.Backlog = true
	why := &pb.WhyResponse{
		Message: proto.CloneOf(own), Summary: "partly",
		Devices: []*pb.WhyDevice{
			{Account: idBob, Device: devOne, Name: "Bob", State: "delivered", DeliveredMs: longAgo},
			{Account: idCarol, Device: devTwo, Name: "Carol", State: "waiting", Custody: []*pb.Custody{{Mailbox: devOne, SinceMs: longAgo, UntilMs: longAgo}}},
		},
	}
	return &fakeNode{
		networks: []*pb.Network{{Id: netDemo, Name: "demo"}},
		why:      why,
		events: []*pb.Event{
			{Seq: 1, TimeMs: longAgo, Type: "invitation", Detail: "incoming", Conversation: idOther, Name: "climbers", Account: idCarol, AccountName: "Carol"},
			{Seq: 2, TimeMs: longAgo, Type: "application", Detail: "incoming", Conversation: idHikers, Name: "hikers", Account: idCarol},
			{Seq: 3, TimeMs: longAgo, Type: "group", Detail: "removed", Conversation: idHikers, Name: "hikers", Account: idBob, AccountName: "Bob", Subject: idCarol, SubjectName: "Carol"},
			{Seq: 4, TimeMs: longAgo, Type: "group", Detail: "brand-new", Conversation: idHikers, Name: "hikers", Account: idBob},
			{Seq: 5, TimeMs: longAgo, Type: "state", Conversation: idHikers, Message: own, MessageIds: []string{own.GetId()}},
		},
		groups: fakeGroups{
			all: []*pb.Group{hikers, photos},
			members: []*pb.GroupMember{
				{Account: idAlice, Name: "Ali", Nickname: "Chief", Username: "alice", Role: "owner", Relation: "self", Online: true, JoinedMs: longAgo},
				{Account: idBob, Name: "Bob", Username: "bob", Role: "admin", Relation: "contact", JoinedMs: longAgo, LastSeenMs: longAgo},
				{Account: idCarol, Name: "hima1qqqq", Role: "member", Relation: "none", JoinedMs: longAgo},
			},
			invited: []*pb.GroupInvited{
				{Who: "bob", Account: idBob, Name: "Bob", State: "already_member"},
				{Who: "carol", Account: idCarol, Name: "Carol", State: "invited"},
				{Who: "zoe", State: "failed", Error: "nobody of this name was found", Code: "not_found"},
			},
			invitations: []*pb.Invitation{
				{Group: &pb.Group{Id: idOther, Name: "climbers", Size: 12, Description: "no ropes"}, From: idCarol, FromName: "Carol", TimeMs: longAgo, ExpiresMs: farAhead, State: "waiting"},
				{Group: hikers, Outgoing: true, From: idAlice, To: idBob, ToName: "Bob", TimeMs: longAgo, ExpiresMs: longAgo, State: "declined"},
			},
			links: []*pb.GroupLinkInfo{
				{Link: "hima-group:aaaa", Token: strings.Repeat("ab", 16), CreatedMs: longAgo, ExpiresMs: farAhead, Uses: 20, Used: 3},
				{Link: "hima-group:bbbb", Token: strings.Repeat("cd", 16), CreatedMs: longAgo, Revoked: true},
				{Link: "hima-group:cccc", Token: strings.Repeat("ef", 16), CreatedMs: longAgo, Uses: 1, Used: 1},
				{Link: "hima-group:dddd", Token: strings.Repeat("01", 16), CreatedMs: longAgo, ExpiresMs: longAgo},
			},
			found: &pb.SearchGroupsResponse{
				Groups: []*pb.FoundGroup{
					{Id: idPhotos, Name: "Photos", Description: "no talk", Size: 40, Join: "apply", Owner: idCarol, OwnerName: "Carol", Source: "network", Network: "demo", State: "applied", ExpiresMs: farAhead, Disputed: true},
					{Id: idPhotos, Name: "Photos", Size: 3, Join: "open", Owner: idBob, Source: "network", Network: "demo", State: "applied", ExpiresMs: farAhead, Disputed: true},
					{Id: idOther, Name: "photos", Size: 2, Join: "open", Owner: idBob, Source: "nearby", State: "none", ExpiresMs: farAhead},
				},
				Unreachable: []string{"friends"},
			},
			applications: []*pb.Application{
				{Group: idHikers, GroupName: "hikers", Account: idCarol, Name: "Carol", Message: "I know the way", TimeMs: longAgo, ExpiresMs: farAhead, State: "waiting", ByLink: true},
				{Group: idPhotos, GroupName: "photos", Account: idAlice, Name: "Ali", Own: true, TimeMs: longAgo, ExpiresMs: farAhead, State: "rejected", Reason: "we are full", By: idBob, ByName: "Bob"},
				{
					Group: idOther, GroupName: "climbers", Account: idAlice, Name: "Ali", Own: true, TimeMs: longAgo, ExpiresMs: farAhead, State: "waiting",
					Answers: []*pb.ApplicationAnswer{{By: idBob, ByName: "Bob", Reason: "we are full", Decided: true}, {By: idCarol, Reason: "the link was revoked"}},
				},
				{
					Group: idOther, GroupName: "sailors", Account: idAlice, Name: "Ali", Own: true, TimeMs: longAgo, ExpiresMs: farAhead, State: "rejected", By: idBob, ByName: "Bob",
					Answers: []*pb.ApplicationAnswer{{By: idBob, ByName: "Bob", Decided: true}, {By: idCarol, ByName: "Carol", Reason: "not yet", Decided: true}},
				},
			},
			history: &pb.HistoryResponse{Conversation: idHikers, Messages: []*pb.Message{
				old, act("group-created", "Bob", "", ""), act("group-admitted", "Bob", "Carol", ""), act("group-role", "Bob", "Carol", "admin"),
				act("group-set", "Bob", "", "announcement=Saturday at nine"), act("group-set", "Bob", "", "mute=yes"), act("group-transferred", "Bob", "Ali", ""),
				act("group-removed", "Ali", "Carol", ""), act("group-left", "Bob", "", ""), text("c1", idBob, "老王", "hello\nall"), own, sent,
			}},
			talks: []*pb.Conversation{
				{Id: idHikers, Kind: "group", Name: "hikers", Unread: 2, Last: text("c1", idBob, "老王", "hello"), Members: 3, Role: "owner"},
				{Id: idOther, Kind: "group", Name: "climbers", Last: own},
				{Id: "dd", Kind: "direct", Name: "Bob", Peer: idBob},
			},
		},
	}
}

// TestGroupAnswers shows every answer about groups in both languages and as JSON.
func TestGroupAnswers(t *testing.T) {
	for _, c := range []struct {
		golden string
		code   int
		args   []string
	}{
		{"group-create", 0, []string{"group", "create", "hikers", "--public", "--join", "apply", "--history", "100"}},
		{"group-list", 0, []string{"group", "list"}},
		{"group-info", 0, []string{"group", "info", "hikers"}},
		{"group-members", 0, []string{"group", "members", "hikers"}},
		{"group-invite", 1, []string{"group", "invite", "hikers", "bob", "carol", "zoe"}},
		{"group-accept", 0, []string{"group", "accept", "hikers"}},
		{"group-decline", 0, []string{"group", "decline", "hikers"}},
		{"group-invitations", 0, []string{"group", "invitations"}},
		{"group-link", 0, []string{"group", "link", "hikers", "--expires", "7d", "--uses", "20"}},
		{"group-link-list", 0, []string{"group", "link", "list", "hikers"}},
		{"group-link-revoke", 0, []string{"group", "link", "revoke", "hikers", strings.Repeat("cd", 16)}},
		{"group-search", 0, []string{"search", "--groups", "photos"}},
		{"group-apply", 0, []string{"group", "apply", "photos", "--message", "let me in"}},
		{"group-applications", 0, []string{"group", "applications"}},
		{"group-approve", 0, []string{"group", "approve", "hikers", "carol"}},
		{"group-reject", 0, []string{"group", "reject", "hikers", "carol", "--reason", "full"}},
		{"group-remove", 0, []string{"group", "remove", "hikers", "carol"}},
		{"group-transfer", 0, []string{"group", "transfer", "hikers", "bob"}},
		{"group-leave", 0, []string{"group", "leave", "hikers"}},
		{"group-dissolve", 0, []string{"group", "dissolve", "hikers"}},
		{"group-set", 0, []string{"group", "set", "hikers", "mute", "on"}},
		{"group-set-nickname", 0, []string{"group", "set", "hikers", "nickname", "老王"}},
		{"group-set-no-nickname", 0, []string{"group", "set", "hikers", "nickname", ""}},
		{"group-set-cleared", 0, []string{"group", "set", "hikers", "announcement", ""}},
		{"group-invite-withdraw", 1, []string{"group", "invite", "hikers", "zoe", "--withdraw"}},
		{"group-history", 0, []string{"history", "hikers"}},
		{"group-conversations", 0, []string{"conversations"}},
		{"group-why", 0, []string{"why", "c3c3"}},
		{"group-watch", 0, []string{"watch", "--since", "0", "--count", "5"}},
	} {
		t.Run(c.golden, func(t *testing.T) { fakeClub().requireAnswers(t, c.golden, c.code, c.args...) })
	}
}

// TestGroupInfoFromOutside: of a group that somebody is not in the size is what its card claims.
func TestGroupInfoFromOutside(t *testing.T) {
	f := fakeClub()
	f.groups.all = f.groups.all[1:]
	f.requireAnswers(t, "group-info-applied", 0, "group", "info", "photos")
}

// TestGroupMembersFromOutside: nothing at all would look like an empty group.
func TestGroupMembersFromOutside(t *testing.T) {
	f := fakeClub()
	f.groups.members = nil
	f.requireAnswers(t, "group-members-none", 0, "group", "members", "photos")
}

// TestGroupUsage: wrong use is refused before anything is asked.
func TestGroupUsage(t *testing.T) {
	f := fakeClub()
	for _, args := range [][]string{
		{"group"},
		{"group", "create"},
		{"group", "create", "hikers", "--join", "me"},
		{"group", "create", "hikers", "--history", "0"},
		{"group", "create", "hikers", "--history", "-1"},
		{"group", "invite", "hikers"},
		{"group", "link", "hikers", "--expires", "soon"},
		{"group", "link", "hikers", "--expires", ""},
		{"group", "link", "hikers", "--expires", "0"},
		{"group", "link", "hikers", "--expires", "0d"},
		{"group", "link", "hikers", "--expires", "5us"},
		{"group", "link", "hikers", "--uses", "-1"},
		{"group", "link", "hikers", "--uses", "0"},
		{"group", "link", "revoke", "hikers"},
		{"group", "apply", "hima:abc"},
		{"group", "apply", "hima-net:abc"},
		{"group", "apply", "photos", "--withdraw", "--message", "x"},
		{"group", "approve", "hikers"},
		{"group", "remove", "hikers"},
		{"group", "set", "hikers", "mute"},
		{"group", "set", "hikers", "mute", "perhaps"},
		{"group", "set", "hikers", "history", "some"},
		{"group", "set", "hikers", "shoes", "42"},
		{"group", "set", "hikers", "mailbox", "bob"},
		{"search", "--groups", " "},
		{"network", "join", "hima:abc"},
		{"network", "join", "HIMA-GROUP:abc"},
		{"contact", "add", "hima-group:abc"},
		{"contact", "add", " "},
	} {
		r := f.do(t, "C", args...)
		require.Equal(t, exitUsage, r.code, "%v: %v", args, r)
		require.Nil(t, f.groups.asked, args)
	}
	for args, next := range map[string]string{
		"network join hima:abc": "contact add", "network join hima-group:abc": "group apply", "contact add hima-group:abc": "group apply",
		"group apply hima:abc": "contact add",
	} {
		require.Contains(t, f.do(t, "C", strings.Fields(args)...).stderr, next)
	}
}

// TestGroupRefusals: every refusal says what to do next, in both languages, and has its code.
func TestGroupRefusals(t *testing.T) {
	for code, want := range map[control.Code]struct {
		exit int
		next string
	}{
		control.NotMember:  {exitFailed, "group list"},
		control.NotAllowed: {exitNotAllowed, "group members"},
		control.LastOwner:  {exitFailed, "group transfer"},
		control.Dissolved:  {exitFailed, "history"},
		control.Muted:      {exitNotAllowed, "mute no"},
		control.Expired:    {exitFailed, ""},
	} {
		f := fakeClub()
		f.refuse = &control.Error{Code: code, Message: "refused"}
		for _, lang := range []string{"C", "zh_CN.UTF-8"} {
			r := f.do(t, lang, "group", "leave", "hikers")
			require.Equal(t, want.exit, r.code)
			require.Contains(t, r.stderr, want.next)
			require.Len(t, strings.Split(strings.TrimSpace(r.stderr), "\n"), 2, "an error and a hint: %s", r.stderr)
		}
	}
}

// TestGroupRequests: what is typed arrives as it was meant.
func TestGroupRequests(t *testing.T) {
	for line, want := range map[string]proto.Message{
		"group create 摄影 --description x":                &pb.CreateGroupRequest{Name: "摄影", Description: "x"},
		"group link hikers --expires 12h":                &pb.CreateGroupLinkRequest{Group: "hikers", ExpiresInMs: 12 * 3600 * 1000},
		"group link revoke hima-group:x":                 &pb.RevokeGroupLinkRequest{Group: "hima-group:x", Token: "hima-group:x"},
		"group apply photos --withdraw":                  &pb.ApplyToGroupRequest{Group: "photos", Withdraw: true},
		"group set hikers public false":                  &pb.SetGroupRequest{Group: "hikers", Key: "public", Value: "no"},
		"group set hikers history 20":                    &pb.SetGroupRequest{Group: "hikers", Key: "history", Value: "20"},
		"group set hikers mailbox own":                   &pb.SetGroupRequest{Group: "hikers", Key: "mailbox", Value: "own"},
		"group set hikers mailbox " + devOne:             &pb.SetGroupRequest{Group: "hikers", Key: "mailbox", Value: devOne},
		"group promote hikers bob":                       &pb.ActOnGroupRequest{Group: "hikers", Act: pb.ActOnGroupRequest_ACT_PROMOTE, Who: "bob"},
		"group dissolve hikers -y":                       &pb.ActOnGroupRequest{Group: "hikers", Act: pb.ActOnGroupRequest_ACT_DISSOLVE},
		"group invite group:hikers bob carol --withdraw": &pb.InviteToGroupRequest{Group: "group:hikers", Who: []string{"bob", "carol"}, Withdraw: true},
	} {
		f := fakeClub()
		f.groups.invited = nil
		r := f.do(t, "C", strings.Fields(line)...)
		require.Equal(t, exitOK, r.code, "%s: %v", line, r)
		require.True(t, proto.Equal(want, f.groups.asked), "%s: %v", line, f.groups.asked)
	}
}

// TestNoGroups: empty lists say what to do, and a search in vain says where it looked.
func TestNoGroups(t *testing.T) {
	f := &fakeNode{groups: fakeGroups{found: &pb.SearchGroupsResponse{}}}
	for cmd, next := range map[string]string{"list": "group create", "invitations": "No invitations", "applications": "No applications", "link list x": "group link"} {
		r := f.do(t, "C", append([]string{"group"}, strings.Fields(cmd)...)...)
		require.Equal(t, exitOK, r.code)
		require.Contains(t, r.stderr, next)
	}
	r := f.do(t, "C", "search", "--groups", "hikers")
	require.Equal(t, exitFailed, r.code)
	require.Contains(t, r.stderr, "network join")
	f.networks = []*pb.Network{{Id: netDemo}}
	require.Contains(t, f.do(t, "C", "search", "--groups", "hikers").stderr, "group link")
	f.groups.found.Unreachable = []string{"demo"}
	require.Contains(t, f.do(t, "C", "search", "--groups", "hikers").stderr, "network status")
}

// TestGroupCompletion: groups, members and applicants complete from what the node says.
func TestGroupCompletion(t *testing.T) {
	f := fakeClub()
	for line, want := range map[string]string{
		"group info":               "hikers\thikers\nphotos\tphotos\n",
		"group remove hikers":      "bob\tBob\n",
		"group approve hikers":     strings.TrimSuffix(shortAccount(idCarol), "…") + "\tCarol\n",
		"group accept":             "climbers\tclimbers\n",
		"group set hikers":         "announcement\n",
		"group set hikers mute":    "yes\nno\n",
		"group set hikers mailbox": "own\nnone\n",
		"group create x --join":    "apply\n",
		"group link":               "hikers\thikers\n",
		"send":                     "hikers\thikers\n",
	} {
		r := f.do(t, "C", append(append([]string{"__complete"}, strings.Fields(line)...), "")...)
		require.Contains(t, r.stdout, want, line)
	}
	r := f.do(t, "C", "__complete", "mailbox", "offer", "")
	require.NotContains(t, r.stdout, "hikers", "a group keeps no mail")
}
