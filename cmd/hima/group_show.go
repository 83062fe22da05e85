package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"hima/internal/control/pb"
	"hima/internal/text"
)

// groupMember is the state of a group that one is in.
const groupMember = "member"

// groupList lists the groups one is in, was in, or waits for.
func (a *app) groupList(ctx context.Context) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ListGroups(ctx, &pb.ListGroupsRequest{})
	if err != nil {
		return err
	}
	t := a.newTable("column.name", "column.id", "column.members", "column.you", "column.applications", "column.about")
	return showList(a, t, "group.none", resp.GetGroups(), groupOf, func(v groupView) {
		t.row(v.show(), shortGroup(v.ID), count(v.Size), a.standing(v), a.yellow(count(v.Applications)),
			text.OneLine(firstOf(v.Announcement, v.Description), maxIDCells))
	})
}

// standing is the own role in a group, or why there is none.
func (a *app) standing(v groupView) string {
	if v.Role != "" && v.State == groupMember {
		return a.word("role", v.Role)
	}
	return a.word("group_state", v.State)
}

// groupInfo shows everything that is known of a group.
func (a *app) groupInfo(ctx context.Context, which string) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.GetGroup(ctx, &pb.GetGroupRequest{Group: which})
	if err != nil {
		return err
	}
	v := groupOf(resp.GetGroup())
	if a.flags.json {
		return a.emit(v)
	}
	a.showGroup(v, time.Now())
	return nil
}

func (a *app) showGroup(v groupView, now time.Time) {
	shown := a.bold(v.show())
	if v.Public {
		shown += "  " + a.dim(a.t("group.public"))
	}
	owner := ""
	if v.Owner != "" {
		owner = firstOf(v.OwnerName, "–") + "  " + a.dim(shortAccount(v.Owner))
	}
	you := a.standing(v)
	if v.Nickname != "" {
		you += "  " + a.t("group.known_as", "Name", v.Nickname)
	}
	if v.Joined != "" {
		you += "  " + a.dim(a.t("group.since", "Time", localStamp(v.Joined, now)))
	}
	mute, applications := "", ""
	if v.Mute {
		mute = a.yellow(a.t("group.muted"))
	}
	if v.Applications > 0 {
		applications = a.yellow(strconv.Itoa(int(v.Applications)))
	}
	size := "field.members"
	if v.Role == "" && v.Joined == "" {
		size = "field.claimed_size" // only who is in can count them
	}
	a.fields(a.out,
		a.t("field.group"), shown,
		a.t("field.id"), v.ID,
		a.t("field.about"), v.Description,
		a.t("field.announcement"), a.announcement(v, now),
		a.t(size), count(v.Size),
		a.t("field.owner"), owner,
		a.t("field.you"), you,
		a.t("field.join"), a.word("join", v.Join),
		a.t("field.may_invite"), a.word("may_invite", v.Invite),
		a.t("field.newcomers"), a.newcomersRead(v.History),
		a.t("field.writing"), mute,
		a.t("field.applications"), applications,
		a.t("field.mailbox"), strings.Join(v.Mailboxes, " "),
	)
	if v.ReadOnly {
		a.warn(a.t("error.read_only"))
	}
	a.hint(a.tOptional("hint.group." + v.State))
}

// announcement is the text that a group shows to everybody, with who wrote it and when.
func (a *app) announcement(v groupView, now time.Time) string {
	if v.Announcement == "" {
		return ""
	}
	by := firstOf(v.AnnouncedByName, shortAccount(v.AnnouncedBy))
	if by == "" {
		return v.Announcement
	}
	return v.Announcement + "\n" + a.dim(a.t("group.announced", "Who", by, "Time", localStamp(v.Announced, now)))
}

// newcomersRead tells how much of what was said before a newcomer may read.
func (a *app) newcomersRead(history string) string {
	if n, err := strconv.Atoi(history); err == nil {
		return a.tn("newcomers.last", n)
	}
	return a.word("newcomers", history)
}

// groupMembers lists who is in a group.
func (a *app) groupMembers(ctx context.Context, which string) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ListMembers(ctx, &pb.ListMembersRequest{Group: which})
	if err != nil {
		return err
	}
	t := a.newTable("column.name", "column.username", "column.id", "column.role", "column.relation", "column.since", "column.last_seen")
	now := time.Now()
	return showList(a, t, a.t("group.no_members"), resp.GetMembers(), groupMemberOf, func(v groupMemberView) {
		seen := localStamp(v.LastSeen, now)
		if v.Online {
			seen = a.green(a.t("word.online"))
		}
		t.row(firstOf(v.Name, "–"), v.Username, shortAccount(v.Account), a.word("role", v.Role), a.word("relation", v.Relation),
			localStamp(v.Joined, now), seen)
	})
}

// messageState says how far an own message got: in a group to how many of how many, for they differ.
func (a *app) messageState(v messageView) string {
	if v.Members == 0 || rank(v.State) < rank(stateSent) || v.DeliveredTo == 0 {
		return a.word("state", v.State)
	}
	id := "state.delivered_to"
	if v.ReadBy > 0 {
		id = "state.delivered_read"
	}
	return a.t(id, "Count", v.DeliveredTo, "Members", v.Members, "Read", v.ReadBy)
}

// groupLine tells what somebody did in a group; "" for kinds that are no such act.
func (a *app) groupLine(v messageView) string {
	if !strings.HasPrefix(v.Kind, "group-") {
		return ""
	}
	id := "kind." + strings.ReplaceAll(v.Kind, "-", "_")
	subject := firstOf(v.SubjectName, shortAccount(v.Subject))
	switch v.Kind {
	case "group-admitted":
		if v.Subject == v.Author || v.Subject == "" {
			id = "kind.group_came"
		}
	case "group-role":
		return a.t(id, "Who", subject, "Role", a.word("role", v.Text))
	case "group-set":
		key, value, _ := strings.Cut(v.Text, "=")
		if s := a.tIf("kind.group_set."+key, "Value", firstOf(value, "–")); s != "" {
			return s
		}
		return a.t(id, "Key", a.word("group_key", key), "Value", firstOf(a.settingWord(key, value), "–"))
	}
	return a.t(id, "Who", subject)
}

// settingWord is what a setting of a group means.
func (a *app) settingWord(key, value string) string {
	switch key {
	case "public", "mute":
		return a.word("word", value)
	case "join":
		return a.word("join", value)
	case "invite":
		return a.word("may_invite", value)
	case "history":
		return a.newcomersRead(value)
	}
	return shortText(value)
}

// groupEvent tells what happened in a group, to an invitation or to an application; "" for other events, and for those that
// are a line of the history, which a message event shows.
func (a *app) groupEvent(v eventView) string {
	if v.Type != eventGroup && v.Type != eventInvitation && v.Type != eventApplication {
		return ""
	}
	return a.tIf("event."+v.Type+"."+v.Detail, "Name", firstOf(v.Name, shortGroup(v.Conversation), "–"),
		"Who", firstOf(v.AccountName, shortAccount(v.Account), "–"), "Whom", firstOf(v.SubjectName, shortAccount(v.Subject), "–"))
}

// tIf is tOptional for a text with placeholders.
func (a *app) tIf(id string, pairs ...any) string {
	if s := a.t(id, pairs...); s != id {
		return s
	}
	return ""
}
