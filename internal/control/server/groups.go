package server

import (
	"context"
	"encoding/hex"
	"time"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/messenger"
)

func (h *handlers) CreateGroup(ctx context.Context, in *pb.CreateGroupRequest) (*pb.GroupResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	return groupAnswer(m.CreateGroup(ctx, messenger.GroupOptions{
		Name: in.GetName(), Description: in.GetDescription(), Public: in.GetPublic(), Join: in.GetJoin(), History: in.GetHistory(),
	}))
}

func groupAnswer(g messenger.Group, err error) (*pb.GroupResponse, error) {
	if err != nil {
		return nil, err
	}
	return &pb.GroupResponse{Group: groupOf(g)}, nil
}

func (h *handlers) GetGroup(ctx context.Context, in *pb.GetGroupRequest) (*pb.GroupResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	return groupAnswer(m.Group(ctx, in.GetGroup()))
}

func (h *handlers) ListGroups(ctx context.Context, _ *pb.ListGroupsRequest) (*pb.ListGroupsResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	list, err := m.Groups(ctx)
	return &pb.ListGroupsResponse{Groups: mapped(list, groupOf)}, err
}

func (h *handlers) InviteToGroup(ctx context.Context, in *pb.InviteToGroupRequest) (*pb.InviteToGroupResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	g, invited, err := m.InviteToGroup(ctx, in.GetGroup(), in.GetWho(), in.GetWithdraw())
	return &pb.InviteToGroupResponse{Group: groupOf(g), Invited: mapped(invited, invitedOf)}, err
}

// invitedOf gives a refusal the code of the local API besides its sentence: the call as a whole succeeded, so that nothing
// else carries it.
func invitedOf(i messenger.GroupInvited) *pb.GroupInvited {
	out := &pb.GroupInvited{Who: i.Who, Account: accountText(i.Account), Name: i.Name, State: i.State}
	if i.Err != nil {
		out.Error = i.Err.Error()
		out.Code = string(control.CodeOf(Translate(i.Err)))
	}
	return out
}

func (h *handlers) ListInvitations(ctx context.Context, _ *pb.ListInvitationsRequest) (*pb.ListInvitationsResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	list, err := m.GroupInvitations(ctx)
	return &pb.ListInvitationsResponse{Invitations: mapped(list, invitationOf)}, err
}

func (h *handlers) AnswerInvitation(ctx context.Context, in *pb.AnswerInvitationRequest) (*pb.AnswerInvitationResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	g, err := m.AnswerGroupInvitation(ctx, in.GetGroup(), in.GetAccept())
	return &pb.AnswerInvitationResponse{Group: groupOf(g)}, err
}

func (h *handlers) CreateGroupLink(ctx context.Context, in *pb.CreateGroupLinkRequest) (*pb.GroupLinkResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	if in.GetExpiresInMs() < 0 || in.GetUses() < 0 {
		return nil, &control.Error{Code: control.Invalid, Message: "a link cannot have expired before it is made", Hint: "give a time and a number above zero"}
	}
	l, err := m.CreateGroupLink(ctx, in.GetGroup(), time.Duration(in.GetExpiresInMs())*time.Millisecond, int(in.GetUses()))
	return &pb.GroupLinkResponse{Link: groupLinkOf(l)}, err
}

func (h *handlers) ListGroupLinks(ctx context.Context, in *pb.ListGroupLinksRequest) (*pb.ListGroupLinksResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	list, err := m.GroupLinks(ctx, in.GetGroup())
	return &pb.ListGroupLinksResponse{Links: mapped(list, groupLinkOf)}, err
}

func (h *handlers) RevokeGroupLink(ctx context.Context, in *pb.RevokeGroupLinkRequest) (*pb.GroupLinkResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	l, err := m.RevokeGroupLink(ctx, in.GetGroup(), in.GetToken())
	return &pb.GroupLinkResponse{Link: groupLinkOf(l)}, err
}

func (h *handlers) SearchGroups(ctx context.Context, in *pb.SearchGroupsRequest) (*pb.SearchGroupsResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	found, err := m.SearchGroups(ctx, in.GetName())
	return &pb.SearchGroupsResponse{Groups: mapped(found.Groups, foundGroupOf), Unreachable: found.Unreachable}, err
}

func (h *handlers) ApplyToGroup(ctx context.Context, in *pb.ApplyToGroupRequest) (*pb.ApplyToGroupResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	var g messenger.Group
	if in.GetWithdraw() {
		g, err = m.WithdrawApplication(ctx, in.GetGroup())
	} else {
		g, err = m.ApplyToGroup(ctx, in.GetGroup(), in.GetMessage())
	}
	return &pb.ApplyToGroupResponse{Group: groupOf(g)}, err
}

func (h *handlers) ListApplications(ctx context.Context, in *pb.ListApplicationsRequest) (*pb.ListApplicationsResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	list, err := m.GroupApplications(ctx, in.GetGroup())
	return &pb.ListApplicationsResponse{Applications: mapped(list, applicationOf)}, err
}

func (h *handlers) DecideApplication(ctx context.Context, in *pb.DecideApplicationRequest) (*pb.DecideApplicationResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	a, err := m.DecideApplication(ctx, in.GetGroup(), in.GetWho(), in.GetApprove(), in.GetReason())
	return &pb.DecideApplicationResponse{Application: applicationOf(a)}, err
}

func (h *handlers) ListMembers(ctx context.Context, in *pb.ListMembersRequest) (*pb.ListMembersResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	g, members, err := m.GroupMembers(ctx, in.GetGroup())
	return &pb.ListMembersResponse{Group: groupOf(g), Members: mapped(members, groupMemberOf)}, err
}

func (h *handlers) ActOnGroup(ctx context.Context, in *pb.ActOnGroupRequest) (*pb.GroupResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	act, ok := groupAct(in.GetAct())
	if !ok {
		return nil, &control.Error{Code: control.Invalid, Message: "unknown act on a group", Hint: "client and node may be of different versions"}
	}
	return groupAnswer(m.ActOnGroup(ctx, in.GetGroup(), act, in.GetWho()))
}

func groupAct(a pb.ActOnGroupRequest_Act) (act messenger.GroupAct, known bool) {
	switch a {
	case pb.ActOnGroupRequest_ACT_REMOVE:
		return messenger.GroupRemove, true
	case pb.ActOnGroupRequest_ACT_PROMOTE:
		return messenger.GroupPromote, true
	case pb.ActOnGroupRequest_ACT_DEMOTE:
		return messenger.GroupDemote, true
	case pb.ActOnGroupRequest_ACT_TRANSFER:
		return messenger.GroupTransfer, true
	case pb.ActOnGroupRequest_ACT_LEAVE:
		return messenger.GroupLeave, true
	case pb.ActOnGroupRequest_ACT_DISSOLVE:
		return messenger.GroupDissolve, true
	}
	return 0, false
}

func (h *handlers) SetGroup(ctx context.Context, in *pb.SetGroupRequest) (*pb.GroupResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	return groupAnswer(m.SetGroup(ctx, in.GetGroup(), in.GetKey(), in.GetValue()))
}

// mapped converts a list.
func mapped[A, B any](list []A, f func(A) B) []B {
	out := make([]B, 0, len(list))
	for _, v := range list {
		out = append(out, f(v))
	}
	return out
}

func groupOf(g messenger.Group) *pb.Group {
	out := &pb.Group{
		Id: groupText(g.ID), Name: g.Name, Description: g.Description, Announcement: g.Announcement,
		AnnouncedBy: accountText(g.AnnouncedBy), AnnouncedByName: g.AnnouncedByName, AnnouncedMs: ms(g.AnnouncedAt), Public: g.Public,
		Join: g.Join, Invite: g.Invite, History: g.History, Mute: g.Mute, Role: string(g.Role), State: g.State, Size: int32(g.Size),
		Owner: accountText(g.Owner), OwnerName: g.OwnerName, JoinedMs: ms(g.Joined), ReadOnly: g.ReadOnly,
		Applications: int32(g.Applications), Nickname: g.Nickname,
	}
	for _, d := range g.Mailboxes {
		out.Mailboxes = append(out.Mailboxes, d.String())
	}
	return out
}

func groupMemberOf(m messenger.GroupMember) *pb.GroupMember {
	return &pb.GroupMember{
		Account: accountText(m.Account), Name: m.Name, Nickname: m.Nickname, Username: m.Username, Role: string(m.Role),
		Relation: string(m.Relation), Online: m.Online, LastSeenMs: ms(m.LastSeen), JoinedMs: ms(m.Joined),
	}
}

func invitationOf(i messenger.GroupInvitation) *pb.Invitation {
	return &pb.Invitation{
		Group: groupOf(i.Group), From: accountText(i.From), FromName: i.FromName, TimeMs: ms(i.Time), ExpiresMs: ms(i.Expires),
		Outgoing: i.Outgoing, To: accountText(i.To), ToName: i.ToName, State: i.State,
	}
}

func groupLinkOf(l messenger.GroupLink) *pb.GroupLinkInfo {
	return &pb.GroupLinkInfo{
		Link: l.Link, Token: hex.EncodeToString(l.Token[:]), CreatedMs: ms(l.Created), ExpiresMs: ms(l.Expires), Uses: int32(l.Uses),
		Used: int32(l.Used), Revoked: l.Revoked,
	}
}

func foundGroupOf(g messenger.FoundGroup) *pb.FoundGroup {
	return &pb.FoundGroup{
		Id: groupText(g.ID), Name: g.Name, Description: g.Description, Size: int32(g.Size), Join: g.Join, Owner: accountText(g.Owner),
		OwnerName: g.OwnerName, Source: string(g.Source), Network: g.Network, State: g.State, ExpiresMs: ms(g.Expires),
		Disputed: g.Disputed,
	}
}

func applicationOf(a messenger.GroupApplication) *pb.Application {
	out := &pb.Application{
		Group: groupText(a.Group), GroupName: a.GroupName, Account: accountText(a.Account), Name: a.Name, Message: a.Message,
		TimeMs: ms(a.Time), ExpiresMs: ms(a.Expires), State: a.State, Own: a.Own, ByLink: a.ByLink, Reason: a.Reason,
		By: accountText(a.By), ByName: a.ByName,
	}
	for _, no := range a.Answers {
		out.Answers = append(out.Answers, &pb.ApplicationAnswer{By: accountText(no.By), ByName: no.ByName, Reason: no.Reason, Decided: no.Decided})
	}
	return out
}
