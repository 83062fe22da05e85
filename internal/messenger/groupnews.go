package messenger

import (
	"strings"

	"hima/groups"
	"hima/internal/feed"
	"hima/internal/text"
	"hima/storage"
)

// GroupNews is groups.Config.News: it stores the event of a change in its transaction. Lines of history it need not make:
// the acts are entries, and entries are lines.
func (m *Messenger) GroupNews(tx *storage.Tx, n groups.News) error {
	rec, ok := groupRecord(&n)
	if !ok {
		return nil
	}
	var err error
	if rec.name, err = m.groupName(tx, n.Group); err != nil {
		return err
	}
	switch n.Kind {
	case groups.NewsRemoved, groups.NewsLeft, groups.NewsVoid:
		// What stands beyond the cut is not shown any more, so it cannot be unread.
		if err := m.recount(tx, n.Group); err != nil {
			return err
		}
	}
	switch n.Kind {
	case groups.NewsCreated, groups.NewsJoined, groups.NewsLeft, groups.NewsRemoved, groups.NewsDissolved:
		if n.Self {
			tx.OnCommit(m.wake) // the snapshot names the groups
		}
	}
	tx.OnCommit(func() { m.who.groups.Add(1) })
	return m.events.add(tx, rec)
}

// groupRecord makes the event of a piece of news; ok is false if it is none of a user's business.
func groupRecord(n *groups.News) (rec record, ok bool) {
	kind, detail := EventGroup, string(n.Kind)
	switch n.Kind {
	case groups.NewsEpoch, groups.NewsRevoked:
		return record{}, false
	case groups.NewsInvitation:
		kind, detail = EventInvitation, "incoming"
	case groups.NewsApplication:
		kind, detail = EventApplication, "incoming"
	case groups.NewsApproved, groups.NewsRejected:
		kind = EventApplication
	default:
		if rest, is := strings.CutPrefix(detail, "invitation-"); is {
			kind, detail = EventInvitation, rest
		}
		if rest, is := strings.CutPrefix(detail, "application-"); is {
			kind, detail = EventApplication, rest
		}
	}
	rec = plain(kind, n.Account, n.Group, detail)
	rec.subject = n.Subject
	return rec, true
}

// groupName is what a group is called; what others wrote is neutralised here.
func (m *Messenger) groupName(tx *storage.Tx, id groups.ID) (string, error) {
	info, err := m.env.groups.Info(tx, id)
	if err != nil {
		// An invitation that is over, a group that is gone: the event says the ID.
		return "", ignoreUnknown(err)
	}
	return shownGroupName(&info), nil
}

func shownGroupName(info *groups.Info) string {
	if name := text.OneLine(info.Name, maxField); name != "" {
		return name
	}
	return info.ID.Short()
}

// recount counts the unread lines of a group anew.
func (m *Messenger) recount(tx *storage.Tx, conv feed.ConversationID) error {
	row, ok, err := m.convs.get(tx, conv)
	if err != nil || !ok || row.unread == 0 {
		return err
	}
	rows, err := m.feeds.of(tx, conv)
	if err != nil {
		return err
	}
	var unread uint64
	for i := range rows {
		f := &rows[i]
		if f.own(m.env.account) {
			continue
		}
		n, err := m.countUnread(tx, f, true)
		if err != nil {
			return err
		}
		unread += n
	}
	if unread == row.unread {
		return nil
	}
	row.unread = unread
	return m.convs.put(tx, row)
}
