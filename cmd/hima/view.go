package main

import (
	"time"

	"hima/internal/control/pb"
	"hima/internal/text"
)

// The views are what --json prints: one object a line, snake_case, fields only ever added (testdata/golden holds them).
// They are also where everything from outside is neutralised once more before it is printed in any form: the node did it
// already, and a node of another version is not trusted to have done it.

// shortID is how many hexadecimal digits of a message ID are shown in lists; commands take any unambiguous beginning.
const shortID = 8

// maxIDCells bounds an ID, an address or a word of the API.
const maxIDCells = 400

func name(s string) string { return text.Nickname(s) }

func plain(s string) string { return text.OneLine(s, maxIDCells) }

func namesOf(in []string) []string {
	out := make([]string, 0, len(in))
	for _, s := range in {
		out = append(out, name(s))
	}
	return out
}

func plainAll(in []string) []string {
	out := make([]string, 0, len(in))
	for _, s := range in {
		out = append(out, plain(s))
	}
	return out
}

// stamp writes a time of the API as RFC 3339 in UTC; "" stands for none.
func stamp(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}

type profileView struct {
	Account      string `json:"account"`
	Device       string `json:"device"`
	Username     string `json:"username"`
	Nickname     string `json:"nickname"`
	ContactField string `json:"contact_field"`
	Bio          string `json:"bio"`
	Invite       string `json:"invite"`
	HasPassword  bool   `json:"has_password"`

	Names []networkNameView `json:"names"`
}

func profileOf(p *pb.Profile) profileView {
	return profileView{
		Account: plain(p.GetAccount()), Device: plain(p.GetDevice()), Username: name(p.GetUsername()),
		Nickname: name(p.GetNickname()), ContactField: plain(p.GetContactField()), Bio: text.Message(p.GetBio()),
		Invite: text.OneLine(p.GetInvite(), maxLinkCells), HasPassword: p.GetHasPassword(),
		Names: networkNamesOf(p.GetNames()),
	}
}

// maxLinkCells bounds an invite link: token, account and a handful of addresses.
const maxLinkCells = 4000

type registerView struct {
	profileView
	Phrase   string       `json:"phrase"`
	Warnings []string     `json:"warnings"`
	Network  *networkView `json:"network,omitempty"`
}

type statusView struct {
	State           string     `json:"state"`
	Profile         string     `json:"profile"`
	Version         string     `json:"version"`
	Commit          string     `json:"commit"`
	PID             int32      `json:"pid"`
	UptimeMS        int64      `json:"uptime_ms"`
	Account         string     `json:"account"`
	Device          string     `json:"device"`
	Username        string     `json:"username"`
	Addresses       []string   `json:"addresses"`
	Peers           []peerView `json:"peers"`
	PendingMessages int32      `json:"pending_messages"`
	WaitingDevices  int32      `json:"waiting_devices"`
	Unread          int32      `json:"unread"`
	Requests        int32      `json:"requests"`
	LastEvent       uint64     `json:"last_event"`
	MemoryBytes     uint64     `json:"memory_bytes"`
	DatabaseBytes   uint64     `json:"database_bytes"`
	Protocols       []string   `json:"protocols"`
	Warnings        []string   `json:"warnings"`
	Restored        bool       `json:"restored"`

	Networks []networkView `json:"networks"`
}

type peerView struct {
	Account     string `json:"account"`
	Device      string `json:"device"`
	Name        string `json:"name"`
	Address     string `json:"address"`
	Transport   string `json:"transport"`
	Since       string `json:"since"`
	RTTMicros   int64  `json:"rtt_us"`
	ClockSkewMS int64  `json:"clock_skew_ms"`
	Limited     bool   `json:"limited"`
}

func statusOf(s *pb.StatusResponse) statusView {
	v := statusView{
		State: plain(s.GetState()), Profile: name(s.GetProfile()), Version: plain(s.GetVersion()), Commit: plain(s.GetCommit()),
		PID: s.GetPid(), UptimeMS: s.GetUptimeMs(), Account: plain(s.GetAccount()), Device: plain(s.GetDevice()),
		Username: name(s.GetUsername()), Addresses: plainAll(s.GetAddresses()), Peers: []peerView{},
		PendingMessages: s.GetPendingMessages(), WaitingDevices: s.GetWaitingDevices(), Unread: s.GetUnread(),
		Requests: s.GetRequests(), LastEvent: s.GetLastEvent(), MemoryBytes: s.GetMemoryBytes(),
		DatabaseBytes: s.GetDatabaseBytes(), Protocols: plainAll(s.GetProtocols()), Warnings: plainAll(s.GetWarnings()),
		Restored: s.GetRestored(), Networks: networksOf(s.GetNetworks()),
	}
	for _, p := range s.GetPeers() {
		v.Peers = append(v.Peers, peerView{
			Account: plain(p.GetAccount()), Device: plain(p.GetDevice()), Name: name(p.GetName()), Address: plain(p.GetAddress()),
			Transport: plain(p.GetTransport()), Since: stamp(p.GetSinceMs()), RTTMicros: p.GetRttUs(), ClockSkewMS: p.GetClockSkewMs(),
			Limited: p.GetLimited(),
		})
	}
	return v
}

type inviteView struct {
	Link    string `json:"link"`
	Token   string `json:"token"`
	Created string `json:"created"`
	Revoked bool   `json:"revoked"`
	Used    int32  `json:"used"`
}

func inviteOf(i *pb.Invite) inviteView {
	return inviteView{
		Link: text.OneLine(i.GetLink(), maxLinkCells), Token: plain(i.GetToken()), Created: stamp(i.GetCreatedMs()),
		Revoked: i.GetRevoked(), Used: i.GetUsed(),
	}
}

type nearbyView struct {
	Account  string `json:"account"`
	Device   string `json:"device"`
	Username string `json:"username"`
	Nickname string `json:"nickname"`
	Address  string `json:"address"`
	Relation string `json:"relation"`
	Seen     string `json:"seen"`
	// Confirmed is false for every name heard on a LAN: anybody can call themselves anything there.
	Confirmed bool `json:"confirmed"`
}

func nearbyOf(p *pb.NearbyPerson) nearbyView {
	return nearbyView{
		Account: plain(p.GetAccount()), Device: plain(p.GetDevice()), Username: name(p.GetUsername()),
		Nickname: name(p.GetNickname()), Address: plain(p.GetAddress()), Relation: plain(p.GetRelation()), Seen: stamp(p.GetSeenMs()),
	}
}

type foundView struct {
	Account  string `json:"account"`
	Username string `json:"username"`
	Nickname string `json:"nickname"`
	Source   string `json:"source"`
	Relation string `json:"relation"`

	Confirmed    bool            `json:"confirmed"`
	Network      string          `json:"network"`
	Since        string          `json:"since"`
	Disagreement bool            `json:"disagreement"`
	Others       []candidateView `json:"others"`
	Networks     []string        `json:"networks"` // that adding would join
}

func foundOf(f *pb.FindResponse) foundView {
	v := foundView{
		Account: plain(f.GetAccount()), Username: name(f.GetUsername()), Nickname: name(f.GetNickname()),
		Source: plain(f.GetSource()), Relation: plain(f.GetRelation()), Confirmed: f.GetConfirmed(), Network: name(f.GetNetwork()),
		Since: stamp(f.GetSinceMs()), Disagreement: f.GetDisagreement(), Others: []candidateView{},
		Networks: namesOf(f.GetNetworks()),
	}
	for _, c := range f.GetOthers() {
		v.Others = append(v.Others, candidateView{
			Account: plain(c.GetAccount()), Username: name(c.GetUsername()), Nickname: name(c.GetNickname()), Source: plain(c.GetSource()),
		})
	}
	return v
}

type contactView struct {
	Account      string   `json:"account"`
	Username     string   `json:"username"`
	Nickname     string   `json:"nickname"`
	ContactField string   `json:"contact_field"`
	Bio          string   `json:"bio"`
	Remark       string   `json:"remark"`
	Relation     string   `json:"relation"`
	Blocked      bool     `json:"blocked"`
	Verified     string   `json:"verified"`
	Online       bool     `json:"online"`
	LastSeen     string   `json:"last_seen"`
	Devices      []string `json:"devices"`
	Conversation string   `json:"conversation"`
	Added        string   `json:"added"`
}

func contactOf(c *pb.Contact) contactView {
	return contactView{
		Account: plain(c.GetAccount()), Username: name(c.GetUsername()), Nickname: name(c.GetNickname()),
		ContactField: plain(c.GetContactField()), Bio: text.Message(c.GetBio()), Remark: name(c.GetRemark()),
		Relation: plain(c.GetRelation()), Blocked: c.GetBlocked(), Verified: plain(c.GetVerified()), Online: c.GetOnline(),
		LastSeen: stamp(c.GetLastSeenMs()), Devices: plainAll(c.GetDevices()), Conversation: plain(c.GetConversation()),
		Added: stamp(c.GetAddedMs()),
	}
}

// show is the name a person chose for this contact, or the best there is.
func (c contactView) show() string {
	return firstOf(c.Remark, c.Nickname, c.Username, shortAccount(c.Account))
}

type addedView struct {
	contactView
	MessageID string   `json:"message_id"`
	Joined    []string `json:"joined"` // names of networks
}

type requestView struct {
	Account      string `json:"account"`
	Username     string `json:"username"`
	Nickname     string `json:"nickname"`
	ContactField string `json:"contact_field"`
	Message      string `json:"message"`
	Incoming     bool   `json:"incoming"`
	State        string `json:"state"`
	Time         string `json:"time"`
	Invited      bool   `json:"invited"`
	MessageID    string `json:"message_id"`
}

func requestOf(r *pb.ContactRequest) requestView {
	return requestView{
		Account: plain(r.GetAccount()), Username: name(r.GetUsername()), Nickname: name(r.GetNickname()),
		ContactField: plain(r.GetContactField()), Message: text.Message(r.GetMessage()), Incoming: r.GetIncoming(),
		State: plain(r.GetState()), Time: stamp(r.GetTimeMs()), Invited: r.GetInvited(), MessageID: plain(r.GetMessageId()),
	}
}

type verifyView struct {
	Digits  string      `json:"digits"`
	QR      string      `json:"qr"`
	Contact contactView `json:"contact"`
}

type settingView struct {
	Key     string   `json:"key"`
	Value   string   `json:"value"`
	Default string   `json:"default"`
	Allowed []string `json:"allowed"`
}

func settingOf(s *pb.Setting) settingView {
	return settingView{
		Key: plain(s.GetKey()), Value: plain(s.GetValue()), Default: plain(s.GetDefaultValue()), Allowed: plainAll(s.GetAllowed()),
	}
}

type messageView struct {
	ID           string `json:"id"`
	Conversation string `json:"conversation"`
	Peer         string `json:"peer"`
	Author       string `json:"author"`
	AuthorName   string `json:"author_name"`
	Device       string `json:"device"`
	Seq          uint64 `json:"seq"`
	Clock        uint64 `json:"clock"`
	Time         string `json:"time"`
	Received     string `json:"received"`
	Kind         string `json:"kind"`
	Text         string `json:"text"`
	Own          bool   `json:"own"`
	State        string `json:"state"`
	Late         bool   `json:"late"`
	ClockAhead   bool   `json:"clock_ahead"`
	Hole         int32  `json:"hole"`

	// Groups.
	Members     int32  `json:"members,omitempty"`
	DeliveredTo int32  `json:"delivered_to,omitempty"`
	ReadBy      int32  `json:"read_by,omitempty"`
	Backlog     bool   `json:"backlog,omitempty"`
	Subject     string `json:"subject,omitempty"`
	SubjectName string `json:"subject_name,omitempty"`

	at time.Time
}

func messageOf(m *pb.Message) messageView {
	return messageView{
		ID: plain(m.GetId()), Conversation: plain(m.GetConversation()), Peer: plain(m.GetPeer()), Author: plain(m.GetAuthor()),
		AuthorName: name(m.GetAuthorName()), Device: plain(m.GetDevice()), Seq: m.GetSeq(), Clock: m.GetClock(),
		Time: stamp(m.GetTimeMs()), Received: stamp(m.GetReceivedMs()), Kind: plain(m.GetKind()), Text: text.Message(m.GetText()),
		Own: m.GetOwn(), State: plain(m.GetState()), Late: m.GetLate(), ClockAhead: m.GetClockAhead(), Hole: m.GetHole(),
		Members: m.GetMembers(), DeliveredTo: m.GetDeliveredTo(), ReadBy: m.GetReadBy(), Backlog: m.GetBacklog(),
		Subject: plain(m.GetSubject()), SubjectName: name(m.GetSubjectName()),
		at: time.UnixMilli(m.GetTimeMs()),
	}
}

type conversationView struct {
	ID       string       `json:"id"`
	Kind     string       `json:"kind"`
	Peer     string       `json:"peer"`
	Name     string       `json:"name"`
	Username string       `json:"username"`
	Relation string       `json:"relation"`
	Unread   int32        `json:"unread"`
	Pending  int32        `json:"pending"`
	Online   bool         `json:"online"`
	Last     *messageView `json:"last"`

	Members int32  `json:"members,omitempty"` // groups
	Role    string `json:"role,omitempty"`
}

func conversationOf(c *pb.Conversation) conversationView {
	v := conversationView{
		ID: plain(c.GetId()), Kind: plain(c.GetKind()), Peer: plain(c.GetPeer()), Name: name(c.GetName()),
		Username: name(c.GetUsername()), Relation: plain(c.GetRelation()), Unread: c.GetUnread(), Pending: c.GetPending(),
		Online: c.GetOnline(), Members: c.GetMembers(), Role: plain(c.GetRole()),
	}
	if c.GetLast() != nil {
		m := messageOf(c.GetLast())
		v.Last = &m
	}
	return v
}

type whyView struct {
	Message messageView     `json:"message"`
	Summary string          `json:"summary"`
	Former  bool            `json:"former,omitempty"`
	Devices []whyDeviceView `json:"devices"`
}

type whyDeviceView struct {
	Account   string        `json:"account"`
	Device    string        `json:"device"`
	Name      string        `json:"name"`
	State     string        `json:"state"`
	Delivered string        `json:"delivered"`
	Connected bool          `json:"connected"`
	NextTry   string        `json:"next_try"`
	LastSeen  string        `json:"last_seen"`
	Attempts  []attemptView `json:"attempts"`
	Custody   []custodyView `json:"custody"`
}

type attemptView struct {
	Time    string `json:"time"`
	Road    string `json:"road"`
	Address string `json:"address"`
	Error   string `json:"error"`
}

func whyOf(w *pb.WhyResponse) whyView {
	v := whyView{Message: messageOf(w.GetMessage()), Summary: plain(w.GetSummary()), Former: w.GetFormer(), Devices: []whyDeviceView{}}
	for _, d := range w.GetDevices() {
		dv := whyDeviceView{
			Account: plain(d.GetAccount()), Device: plain(d.GetDevice()), Name: name(d.GetName()), State: plain(d.GetState()),
			Delivered: stamp(d.GetDeliveredMs()), Connected: d.GetConnected(), NextTry: stamp(d.GetNextTryMs()),
			LastSeen: stamp(d.GetLastSeenMs()), Attempts: []attemptView{}, Custody: custodyOf(d.GetCustody()),
		}
		for _, at := range d.GetAttempts() {
			dv.Attempts = append(dv.Attempts, attemptView{
				Time: stamp(at.GetTimeMs()), Road: plain(at.GetRoad()), Address: plain(at.GetAddress()), Error: plain(at.GetError()),
			})
		}
		v.Devices = append(v.Devices, dv)
	}
	return v
}

type eventView struct {
	Seq          uint64       `json:"seq"`
	Time         string       `json:"time"`
	Type         string       `json:"type"`
	Conversation string       `json:"conversation"`
	Account      string       `json:"account"`
	Message      *messageView `json:"message,omitempty"`
	MessageIDs   []string     `json:"message_ids,omitempty"`
	Detail       string       `json:"detail,omitempty"`
	On           bool         `json:"on,omitempty"`
	Network      string       `json:"network,omitempty"`
	Name         string       `json:"name,omitempty"`
	Device       string       `json:"device,omitempty"`
	AccountName  string       `json:"account_name,omitempty"`
	Subject      string       `json:"subject,omitempty"`
	SubjectName  string       `json:"subject_name,omitempty"`
}

func eventOf(e *pb.Event) eventView {
	v := eventView{
		Seq: e.GetSeq(), Time: stamp(e.GetTimeMs()), Type: plain(e.GetType()), Conversation: plain(e.GetConversation()),
		Account: plain(e.GetAccount()), Detail: plain(e.GetDetail()), On: e.GetOn(),
		Network: name(e.GetNetwork()), Name: name(e.GetName()), Device: plain(e.GetDevice()),
		AccountName: name(e.GetAccountName()), Subject: plain(e.GetSubject()), SubjectName: name(e.GetSubjectName()),
	}
	if e.GetMessage() != nil {
		m := messageOf(e.GetMessage())
		v.Message = &m
	}
	if ids := e.GetMessageIds(); len(ids) > 0 {
		v.MessageIDs = plainAll(ids)
	}
	return v
}

func firstOf(all ...string) string {
	for _, s := range all {
		if s != "" {
			return s
		}
	}
	return ""
}

// shortAccount is an account ID as lists show it: enough to compare by eye, and a beginning that commands take.
func shortAccount(id string) string {
	const shown = len("hima1") + 8
	if len(id) <= shown {
		return id
	}
	return id[:shown] + "…"
}

// shortMessage is the beginning of a message ID.
func shortMessage(id string) string { return id[:min(len(id), shortID)] }
