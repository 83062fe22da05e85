package server

import (
	"encoding/hex"
	"time"

	"hima/identity"
	"hima/internal/control/pb"
	"hima/internal/feed"
	"hima/internal/messenger"
)

// ms is the API's form of a time: Unix milliseconds, 0 for none.
func ms(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// fromMS is the other way.
func fromMS(v int64) time.Time {
	if v == 0 {
		return time.Time{}
	}
	return time.UnixMilli(v)
}

// accountText is empty for no account, where the text form of the zero ID would look like somebody.
func accountText(id identity.AccountID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// groupText is empty for no group, where the text form of the zero ID would look like one.
func groupText(id feed.ConversationID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// Profile is the API's form of a profile; the daemon uses it in its own answers.
func Profile(p messenger.Profile, invite string, hasPassword bool) *pb.Profile {
	out := &pb.Profile{
		Account: p.Account.String(), Device: p.Device.String(), Username: p.Username, Nickname: p.Nickname,
		ContactField: p.ContactField, Bio: p.Bio, Invite: invite, HasPassword: hasPassword,
	}
	for _, s := range p.Names {
		out.Names = append(out.Names, NetworkName(s))
	}
	return out
}

// NetworkName is the API's form of how the username stands on a network; the daemon uses it in its own answers.
func NetworkName(s messenger.NameState) *pb.NetworkName {
	return &pb.NetworkName{
		Network: s.NetworkName, NetworkId: s.Network.String(), Username: s.Name, State: s.State, SinceMs: ms(s.Since),
		Holder: accountText(s.Holder),
	}
}

func inviteOf(i messenger.Invite) *pb.Invite {
	return &pb.Invite{
		Link: i.Link, Token: hex.EncodeToString(i.Token[:]), CreatedMs: ms(i.Created), Revoked: i.Revoked, Used: int32(i.Used),
	}
}

func contactOf(c messenger.Contact) *pb.Contact {
	out := &pb.Contact{
		Account: accountText(c.Account), Username: c.Username, Nickname: c.Nickname, ContactField: c.ContactField,
		Bio: c.Bio, Remark: c.Remark, Relation: string(c.Relation), Blocked: c.Blocked, Verified: string(c.Verified),
		Online: c.Online, LastSeenMs: ms(c.LastSeen), Conversation: c.Conversation.String(), AddedMs: ms(c.Added),
	}
	for _, d := range c.Devices {
		out.Devices = append(out.Devices, d.String())
	}
	return out
}

func messageOf(m messenger.Message) *pb.Message { return newIDTexts().message(m) }

// idTexts are the texts of the accounts and devices of one page: making them anew for each message was a third of a screen.
type idTexts struct {
	accounts map[identity.AccountID]string
	devices  map[identity.DeviceID]string
}

func newIDTexts() idTexts {
	return idTexts{map[identity.AccountID]string{}, map[identity.DeviceID]string{}}
}

func (t idTexts) account(id identity.AccountID) string { return textOf(t.accounts, id, accountText) }

func (t idTexts) device(id identity.DeviceID) string {
	return textOf(t.devices, id, identity.DeviceID.String)
}

func textOf[ID comparable](known map[ID]string, id ID, text func(ID) string) string {
	s, ok := known[id]
	if !ok {
		s = text(id)
		known[id] = s
	}
	return s
}

func (t idTexts) message(m messenger.Message) *pb.Message {
	out := &pb.Message{
		Id: m.ID.String(), Conversation: m.Conversation.String(), Peer: t.account(m.Peer), Author: t.account(m.Author),
		AuthorName: m.AuthorName, Device: t.device(m.Device), Seq: m.Seq, Clock: m.Clock, TimeMs: ms(m.Time),
		Kind: string(m.Kind), Text: m.Text, Own: m.Own, State: string(m.State), Late: m.Late, ClockAhead: m.ClockAhead,
		Hole: int32(m.Hole), ReceivedMs: ms(m.Received), Members: int32(m.Members), DeliveredTo: int32(m.DeliveredTo),
		ReadBy: int32(m.ReadBy), Backlog: m.Backlog, Subject: t.account(m.Subject), SubjectName: m.SubjectName,
	}
	// Lines that are no entries, as a hole or a change of devices, have no ID and may have no device.
	if m.ID.IsZero() {
		out.Id = ""
	}
	if m.Device.IsZero() {
		out.Device = ""
	}
	return out
}

func conversationOf(c messenger.Conversation) *pb.Conversation {
	out := &pb.Conversation{
		Id: c.ID.String(), Kind: string(c.Kind), Peer: accountText(c.Peer), Name: c.Name, Username: c.Username,
		Relation: string(c.Relation), Unread: int32(c.Unread), Online: c.Online, Pending: int32(c.Pending),
		Members: int32(c.Members), Role: string(c.Role),
	}
	if c.Last != nil {
		out.Last = messageOf(*c.Last)
	}
	return out
}

func settingOf(s messenger.Setting) *pb.Setting {
	return &pb.Setting{Key: s.Key, Value: s.Value, DefaultValue: s.Default, Allowed: s.Allowed}
}

func eventOf(e messenger.Event) *pb.Event {
	out := &pb.Event{
		Seq: e.Seq, TimeMs: ms(e.Time), Type: string(e.Type), Detail: e.Detail, On: e.On, Network: e.Network, Name: e.Name,
		AccountName: e.AccountName, SubjectName: e.SubjectName,
	}
	if !e.Holder.IsZero() {
		out.Device = e.Holder.String()
	}
	if e.Conversation != nil {
		out.Conversation = e.Conversation.String()
	}
	if e.Account != nil {
		out.Account = accountText(*e.Account)
	}
	if e.Subject != nil {
		out.Subject = accountText(*e.Subject)
	}
	if e.Message != nil {
		out.Message = messageOf(*e.Message)
	}
	for _, id := range e.MessageIDs {
		out.MessageIds = append(out.MessageIds, id.String())
	}
	return out
}

func whyOf(w messenger.Why) *pb.WhyResponse {
	out := &pb.WhyResponse{Message: messageOf(w.Message), Summary: string(w.Summary), Former: w.Former}
	for _, d := range w.Devices {
		dev := &pb.WhyDevice{
			Account: accountText(d.Account), Device: d.Device.String(), Name: d.Name, State: string(d.State),
			DeliveredMs: ms(d.Delivered), Connected: d.Connected, NextTryMs: ms(d.NextTry), LastSeenMs: ms(d.LastSeen),
		}
		for _, a := range d.Attempts {
			dev.Attempts = append(dev.Attempts, &pb.Attempt{TimeMs: ms(a.Time), Road: a.Road, Address: a.Address, Error: a.Error})
		}
		for _, c := range d.Custody {
			dev.Custody = append(dev.Custody, &pb.Custody{
				Mailbox: c.Mailbox.String(), Name: c.Name, UntilMs: ms(c.Until), SinceMs: ms(c.Since), Expired: c.Expired,
			})
		}
		out.Devices = append(out.Devices, dev)
	}
	return out
}
