package messenger

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

// actLine says which line of history an act of a group is; empty: none.
func actLine(k feed.Kind) MessageKind {
	switch k {
	case feed.KindGroupCreate:
		return MessageGroupCreated
	case feed.KindGroupAdmit:
		return MessageGroupAdmitted
	case feed.KindGroupLeave:
		return MessageGroupLeft
	case feed.KindGroupRemove:
		return MessageGroupRemoved
	case feed.KindGroupRole:
		return MessageGroupRole
	case feed.KindGroupTransfer:
		return MessageGroupTransferred
	case feed.KindGroupSet:
		return MessageGroupSet
	case feed.KindGroupDissolve:
		return MessageGroupDissolved
	}
	return ""
}

// saysAct reads what an act says. Package groups judged it when it came; here it is only put into words.
func saysAct(k feed.Kind, content []byte) (subject identity.AccountID, words string, ok bool) {
	account := func(b []byte) bool {
		a, err := identity.AccountIDFromBytes(b)
		subject = a
		return err == nil
	}
	switch k {
	case feed.KindGroupAdmit:
		var act pb.GroupAdmit
		var signed pb.Signed
		var consent pb.Consent
		ok = proto.Unmarshal(content, &act) == nil && proto.Unmarshal(act.GetConsent(), &signed) == nil &&
			proto.Unmarshal(signed.GetPayload(), &consent) == nil && account(consent.GetAccount())
	case feed.KindGroupRemove:
		var act pb.GroupRemove
		ok = proto.Unmarshal(content, &act) == nil && account(act.GetAccount())
	case feed.KindGroupRole:
		var act pb.GroupRole
		ok = proto.Unmarshal(content, &act) == nil && account(act.GetAccount())
		words = string(RoleMember)
		if act.GetRole() == pb.GroupRole_ROLE_ADMIN {
			words = string(RoleAdmin)
		}
	case feed.KindGroupTransfer:
		var act pb.GroupTransfer
		ok = proto.Unmarshal(content, &act) == nil && account(act.GetAccount())
	case feed.KindGroupSet:
		var act pb.GroupSet
		ok = proto.Unmarshal(content, &act) == nil
		words = text.OneLine(act.GetKey(), maxField) + "="
		if act.GetKey() != groups.SettingMailbox { // addresses, not words
			words += text.Message(act.GetValue())
		}
	case feed.KindGroupCreate, feed.KindGroupLeave, feed.KindGroupDissolve:
		ok = true
	}
	return subject, words, ok
}

// roleName gives a role its name.
func roleName(r groups.Role) RoleName {
	switch r {
	case groups.RoleOwner:
		return RoleOwner
	case groups.RoleAdmin:
		return RoleAdmin
	case groups.RoleMember:
		return RoleMember
	}
	return RoleNone
}

// names says what accounts are called: one place for all that is shown, within one transaction.
type names struct {
	m     *Messenger
	tx    *storage.Tx
	group groups.ID // zero: none
	own   string
	known map[identity.AccountID]string
	near  map[identity.AccountID]string   // what people on this LAN call themselves; nil: not asked for yet
	taken map[string][]identity.AccountID // whose name in the group is what, folded; nil: not asked for yet
}

func (m *Messenger) names(tx *storage.Tx, group groups.ID) *names {
	return &names{m: m, tx: tx, group: group, own: m.ownName(), known: make(map[identity.AccountID]string)}
}

// of gives the remark, the nickname in the group, the nickname, the username, the name on this LAN, or the short ID.
func (n *names) of(a identity.AccountID) (string, error) {
	if a.IsZero() {
		return "", nil
	}
	if a == n.m.env.account {
		return n.own, nil
	}
	if name, ok := n.known[a]; ok {
		return name, nil
	}
	row, _, err := n.m.contacts.get(n.tx, a)
	if err != nil {
		return "", err
	}
	name := row.Remark
	if name == "" {
		if name, err = n.nickname(a); err != nil {
			return "", err
		}
	}
	if name == "" {
		if name = row.name(a); name == a.Short() && n.nearby()[a] != "" {
			name = n.nearby()[a]
		}
	}
	n.known[a] = name
	return name, nil
}

// nearby says what people on this LAN call themselves, which nothing confirms: better than an ID alone.
func (n *names) nearby() map[identity.AccountID]string {
	if n.near == nil {
		n.near = make(map[identity.AccountID]string)
		people, _ := n.m.env.people.Nearby()
		for _, p := range people {
			p = cleanPerson(p)
			n.near[p.Account] = cmp.Or(n.near[p.Account], p.Nickname, p.Username)
		}
	}
	return n.near
}

// nickname is what an account calls itself in the group. Everybody chooses theirs, also one that somebody else goes by: who is
// told apart from them by nothing else is by the ID, which also stands behind a name that looks as if it had one.
func (n *names) nickname(a identity.AccountID) (string, error) {
	if n.group.IsZero() {
		return "", nil
	}
	nick, err := n.m.env.groups.Nickname(n.tx, n.group, a)
	if nick = text.Nickname(nick); nick == "" || ignoreUnknown(err) != nil {
		return "", ignoreUnknown(err)
	}
	if err := n.take(); err != nil {
		return "", err
	}
	folded := text.FoldName(nick)
	if folded == "" || strings.Contains(folded, idPrefix) || slices.ContainsFunc(n.taken[folded], func(b identity.AccountID) bool { return b != a }) {
		nick += " (" + a.Short() + ")"
	}
	return nick, nil
}

// take finds the names that the members go by here: what we call them, what they call themselves in the group and elsewhere, and
// what we are called.
func (n *names) take() error {
	if n.taken != nil {
		return nil
	}
	generation, now := n.m.contacts.generation()+n.m.who.groups.Load(), n.m.env.now()
	if n.taken = n.m.who.takenIn(n.group, generation, now); n.taken != nil {
		return nil
	}
	members, err := n.m.env.groups.Members(n.tx, n.group)
	if err = ignoreUnknown(err); err != nil {
		return err
	}
	n.taken = make(map[string][]identity.AccountID, len(members))
	take := func(a identity.AccountID, name string) {
		if folded := text.FoldName(name); folded != "" && !slices.Contains(n.taken[folded], a) {
			n.taken[folded] = append(n.taken[folded], a)
		}
	}
	take(n.m.env.account, n.own)
	for i := range members {
		a := members[i].Account
		take(a, text.Nickname(members[i].Nickname))
		row, known, err := n.m.contacts.get(n.tx, a)
		if err != nil {
			return err
		}
		name := n.nearby()[a]
		if known && row.name(a) != a.Short() {
			name = row.name(a)
		}
		take(a, name)
	}
	n.m.who.keepTaken(n.group, takenNames{generation: generation, at: now, names: n.taken})
	return nil
}

// counts tells whether an entry of a group is to be shown: a removal cuts what was said, and acts may turn out void.
func (m *Messenger) counts(tx *storage.Tx, e *feed.Entry) (bool, error) {
	if !feed.Known(e.Number, e.Kind) && e.Number == feed.Control {
		return true, nil // that a newer version acted is to be seen (R10)
	}
	return m.env.groups.Counts(tx, *e)
}

// many is what a renderer needs besides for the lines of a group.
type many struct {
	reach     map[localFeed]map[identity.AccountID]reach
	audiences map[string]*audience // by epoch and author
}

// groupMessage adds to a message what groups have besides.
func (r *renderer) groupMessage(msg *Message, e *feed.Entry, row *feedRow) error {
	old, err := r.m.env.groups.Backlog(r.tx, e.Header)
	if err != nil {
		return err
	}
	if msg.Backlog = old; old {
		// It was there before its reader was; to be late one must be awaited.
		msg.Late = false
	}
	if e.Number == feed.Control {
		return r.act(msg, e)
	}
	if !msg.Own {
		return nil
	}
	if msg.Kind == MessageCancelled {
		return nil
	}
	a, err := r.audience(e)
	if err != nil {
		return err
	}
	rows := r.many.reach[row.local]
	if rows == nil {
		if rows, err = r.m.reaches.of(r.tx, row.local); err != nil {
			return err
		}
		r.many.reach[row.local] = rows
	}
	a.count(row.local, rows, e.Seq)
	msg.Members, msg.DeliveredTo, msg.ReadBy = len(a.members), a.delivered, a.read
	msg.State = a.state(row, e.Seq)
	return nil
}

// audience asks once for all entries of one epoch.
func (r *renderer) audience(e *feed.Entry) (*audience, error) {
	key := string(e.Epoch) + string(e.Account[:])
	if a := r.many.audiences[key]; a != nil {
		return a, nil
	}
	list, err := r.m.env.groups.Audience(r.tx, e.Conversation, e.Header)
	if err != nil {
		return nil, err
	}
	a := &audience{members: list}
	r.many.audiences[key] = a
	return a, nil
}

// act puts an act into words.
func (r *renderer) act(msg *Message, e *feed.Entry) error {
	msg.State = StateNone
	content, err := e.Content()
	if err == nil && actLine(e.Kind) != "" {
		var ok bool
		if msg.Subject, msg.Text, ok = saysAct(e.Kind, content); ok {
			msg.Kind = actLine(e.Kind)
			msg.SubjectName, err = r.names.of(msg.Subject)
			return err
		}
	}
	msg.Kind, msg.Text = MessageUnsupported, ""
	return nil
}
