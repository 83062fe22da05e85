package main

import (
	"hima/internal/control/pb"
	"hima/internal/text"
)

// The views of groups; view.go says what views are.

type groupView struct {
	ID              string   `json:"id"`
	Name            string   `json:"name"`
	Description     string   `json:"description"`
	Announcement    string   `json:"announcement"`
	AnnouncedBy     string   `json:"announced_by"`
	AnnouncedByName string   `json:"announced_by_name"`
	Announced       string   `json:"announced"`
	Public          bool     `json:"public"`
	Join            string   `json:"join"`
	Invite          string   `json:"invite"`
	History         string   `json:"history"`
	Mute            bool     `json:"mute"`
	Role            string   `json:"role"`
	State           string   `json:"state"`
	Size            int32    `json:"size"`
	Owner           string   `json:"owner"`
	OwnerName       string   `json:"owner_name"`
	Joined          string   `json:"joined"`
	ReadOnly        bool     `json:"read_only"`
	Applications    int32    `json:"applications"`
	Nickname        string   `json:"nickname"`
	Mailboxes       []string `json:"mailboxes"`
}

func groupOf(g *pb.Group) groupView {
	return groupView{
		ID: plain(g.GetId()), Name: name(g.GetName()), Description: text.Message(g.GetDescription()),
		Announcement: text.Message(g.GetAnnouncement()), AnnouncedBy: plain(g.GetAnnouncedBy()),
		AnnouncedByName: name(g.GetAnnouncedByName()), Announced: stamp(g.GetAnnouncedMs()), Public: g.GetPublic(),
		Join: plain(g.GetJoin()), Invite: plain(g.GetInvite()), History: plain(g.GetHistory()), Mute: g.GetMute(),
		Role: plain(g.GetRole()), State: plain(g.GetState()), Size: g.GetSize(), Owner: plain(g.GetOwner()),
		OwnerName: name(g.GetOwnerName()), Joined: stamp(g.GetJoinedMs()), ReadOnly: g.GetReadOnly(),
		Applications: g.GetApplications(), Nickname: name(g.GetNickname()), Mailboxes: plainAll(g.GetMailboxes()),
	}
}

// show is what to call a group: one that was only heard of may have no name.
func (v groupView) show() string { return firstOf(v.Name, shortGroup(v.ID)) }

// shortGroup is the beginning of a group's ID, which commands take.
func shortGroup(id string) string { return cut(id, shortID) }

type groupMemberView struct {
	Account  string `json:"account"`
	Name     string `json:"name"`
	Nickname string `json:"nickname"`
	Username string `json:"username"`
	Role     string `json:"role"`
	Relation string `json:"relation"`
	Online   bool   `json:"online"`
	LastSeen string `json:"last_seen"`
	Joined   string `json:"joined"`
}

func groupMemberOf(m *pb.GroupMember) groupMemberView {
	return groupMemberView{
		Account: plain(m.GetAccount()), Name: name(m.GetName()), Nickname: name(m.GetNickname()), Username: name(m.GetUsername()),
		Role: plain(m.GetRole()), Relation: plain(m.GetRelation()), Online: m.GetOnline(), LastSeen: stamp(m.GetLastSeenMs()),
		Joined: stamp(m.GetJoinedMs()),
	}
}

type invitedView struct {
	Group   string `json:"group"`
	Who     string `json:"who"`
	Account string `json:"account"`
	Name    string `json:"name"`
	State   string `json:"state"`
	Error   string `json:"error,omitempty"` // code
	Message string `json:"message,omitempty"`
}

type invitationView struct {
	Group    groupView `json:"group"`
	From     string    `json:"from"`
	FromName string    `json:"from_name"`
	To       string    `json:"to"`
	ToName   string    `json:"to_name"`
	Outgoing bool      `json:"outgoing"`
	Time     string    `json:"time"`
	Expires  string    `json:"expires"`
	State    string    `json:"state"`
}

func invitationOf(i *pb.Invitation) invitationView {
	return invitationView{
		Group: groupOf(i.GetGroup()), From: plain(i.GetFrom()), FromName: name(i.GetFromName()), To: plain(i.GetTo()),
		ToName: name(i.GetToName()), Outgoing: i.GetOutgoing(), Time: stamp(i.GetTimeMs()), Expires: stamp(i.GetExpiresMs()),
		State: plain(i.GetState()),
	}
}

type groupLinkView struct {
	Link    string `json:"link"`
	Token   string `json:"token"`
	Created string `json:"created"`
	Expires string `json:"expires"`
	Uses    int32  `json:"uses"`
	Used    int32  `json:"used"`
	Revoked bool   `json:"revoked"`
}

func groupLinkOf(l *pb.GroupLinkInfo) groupLinkView {
	return groupLinkView{
		Link: text.OneLine(l.GetLink(), maxLinkCells), Token: plain(l.GetToken()), Created: stamp(l.GetCreatedMs()),
		Expires: stamp(l.GetExpiresMs()), Uses: l.GetUses(), Used: l.GetUsed(), Revoked: l.GetRevoked(),
	}
}

type foundGroupView struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Size        int32  `json:"size"` // claimed
	Join        string `json:"join"`
	Owner       string `json:"owner"`
	OwnerName   string `json:"owner_name"`
	Source      string `json:"source"`
	Network     string `json:"network"`
	State       string `json:"state"`
	Expires     string `json:"expires"`
	Disputed    bool   `json:"disputed"` // several accounts show that they own it
}

func foundGroupOf(g *pb.FoundGroup) foundGroupView {
	return foundGroupView{
		ID: plain(g.GetId()), Name: name(g.GetName()), Description: text.Message(g.GetDescription()), Size: g.GetSize(),
		Join: plain(g.GetJoin()), Owner: plain(g.GetOwner()), OwnerName: name(g.GetOwnerName()), Source: plain(g.GetSource()),
		Network: name(g.GetNetwork()), State: plain(g.GetState()), Expires: stamp(g.GetExpiresMs()),
		Disputed: g.GetDisputed(),
	}
}

type applicationView struct {
	Group     string `json:"group"`
	GroupName string `json:"group_name"`
	Account   string `json:"account"`
	Name      string `json:"name"`
	Message   string `json:"message"`
	Own       bool   `json:"own"`
	ByLink    bool   `json:"by_link"`
	Time      string `json:"time"`
	Expires   string `json:"expires"`
	State     string `json:"state"`
	Reason    string `json:"reason"`
	By        string `json:"by"`
	ByName    string `json:"by_name"`

	Answers []answerView `json:"answers"`
}

// answerView is a no to an own application.
type answerView struct {
	By      string `json:"by"`
	ByName  string `json:"by_name"`
	Reason  string `json:"reason"`
	Decided bool   `json:"decided"`
}

func applicationOf(a *pb.Application) applicationView {
	answers := []answerView{}
	for _, no := range a.GetAnswers() {
		answers = append(answers, answerView{plain(no.GetBy()), name(no.GetByName()), text.Message(no.GetReason()), no.GetDecided()})
	}
	return applicationView{
		Answers: answers,
		Group:   plain(a.GetGroup()), GroupName: name(a.GetGroupName()), Account: plain(a.GetAccount()), Name: name(a.GetName()),
		Message: text.Message(a.GetMessage()), Own: a.GetOwn(), ByLink: a.GetByLink(), Time: stamp(a.GetTimeMs()),
		Expires: stamp(a.GetExpiresMs()), State: plain(a.GetState()), Reason: text.Message(a.GetReason()), By: plain(a.GetBy()), ByName: name(a.GetByName()),
	}
}
