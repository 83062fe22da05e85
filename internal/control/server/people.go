package server

import (
	"context"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/messenger"
)

func (h *handlers) Nearby(ctx context.Context, _ *pb.NearbyRequest) (*pb.NearbyResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	people, multicast, err := m.Nearby(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.NearbyResponse{Multicast: multicast}
	for _, p := range people {
		out.People = append(out.People, &pb.NearbyPerson{
			Account: accountText(p.Account), Device: p.Device.String(), Username: p.Username, Nickname: p.Nickname,
			Address: p.Address, Relation: string(p.Relation), SeenMs: ms(p.Seen),
		})
	}
	return out, nil
}

func (h *handlers) Find(ctx context.Context, in *pb.FindRequest) (*pb.FindResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	f, err := m.Find(ctx, in.GetWho())
	if err != nil {
		return nil, err
	}
	out := &pb.FindResponse{
		Account: accountText(f.Account), Username: f.Username, Nickname: f.Nickname, Source: string(f.Source),
		Relation: string(f.Relation), Confirmed: f.Confirmed, Network: f.Network, Disagreement: f.Disagreement,
		SinceMs: ms(f.Since), Networks: f.Networks,
	}
	for _, o := range f.Others {
		out.Others = append(out.Others, &pb.Candidate{
			Account: accountText(o.Account), Username: o.Username, Nickname: o.Nickname, Source: string(o.Source),
		})
	}
	return out, nil
}

// Search looks on the networks, among those known and on the LAN.
func (h *handlers) Search(ctx context.Context, in *pb.SearchRequest) (*pb.SearchResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	found, err := m.Search(ctx, in.GetName())
	if err != nil {
		return nil, err
	}
	out := &pb.SearchResponse{Disagreement: found.Disagreement, Unreachable: found.Unreachable}
	for _, r := range found.Results {
		out.Results = append(out.Results, &pb.SearchResult{
			Account: accountText(r.Account), Username: r.Username, Nickname: r.Nickname, Confirmed: r.Confirmed,
			SinceMs: ms(r.Since), Source: string(r.Source), Network: r.Network, Relation: string(r.Relation),
		})
	}
	return out, nil
}

func (h *handlers) AddContact(ctx context.Context, in *pb.AddContactRequest) (*pb.AddContactResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	out := &pb.AddContactResponse{}
	add := messenger.AddContact{
		Who: in.GetWho(), OneWay: in.GetOneWay(), Message: in.GetMessage(), Remark: in.GetRemark(),
		Joined: func(network string) { out.Joined = append(out.Joined, network) },
	}
	if s := in.GetExpectAccount(); s != "" {
		if add.Expect, err = identity.ParseAccountID(s); err != nil {
			return nil, &control.Error{Code: control.Invalid, Message: "the expected account is not an account ID", Cause: err}
		}
	}
	c, id, err := m.AddContact(ctx, add)
	if err != nil {
		return nil, err
	}
	out.Contact = contactOf(c)
	if !id.IsZero() {
		out.MessageId = id.String()
	}
	return out, nil
}

func (h *handlers) ListContacts(ctx context.Context, in *pb.ListContactsRequest) (*pb.ListContactsResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	list, err := m.Contacts(ctx, in.GetAll())
	if err != nil {
		return nil, err
	}
	out := &pb.ListContactsResponse{}
	for _, c := range list {
		out.Contacts = append(out.Contacts, contactOf(c))
	}
	return out, nil
}

func (h *handlers) ListRequests(ctx context.Context, _ *pb.ListRequestsRequest) (*pb.ListRequestsResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	list, err := m.Requests(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.ListRequestsResponse{}
	for _, r := range list {
		out.Requests = append(out.Requests, &pb.ContactRequest{
			Account: accountText(r.Account), Username: r.Username, Nickname: r.Nickname, ContactField: r.ContactField,
			Message: r.Message, Incoming: r.Incoming, State: string(r.State), TimeMs: ms(r.Time), Invited: r.Invited,
			MessageId: r.ID.String(),
		})
	}
	return out, nil
}

func (h *handlers) ActOnContact(ctx context.Context, in *pb.ActOnContactRequest) (*pb.ActOnContactResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	var c messenger.Contact
	switch in.GetAct() {
	case pb.ActOnContactRequest_ACT_ACCEPT:
		c, err = m.Accept(ctx, in.GetWho())
	case pb.ActOnContactRequest_ACT_DECLINE:
		c, err = m.Decline(ctx, in.GetWho())
	case pb.ActOnContactRequest_ACT_BLOCK:
		c, err = m.Block(ctx, in.GetWho())
	case pb.ActOnContactRequest_ACT_UNBLOCK:
		c, err = m.Unblock(ctx, in.GetWho())
	case pb.ActOnContactRequest_ACT_REMOVE:
		c, err = m.Remove(ctx, in.GetWho())
	case pb.ActOnContactRequest_ACT_REMARK:
		c, err = m.Remark(ctx, in.GetWho(), in.GetRemark())
	default:
		return nil, &control.Error{Code: control.Invalid, Message: "unknown act on a contact", Hint: "client and node may be of different versions"}
	}
	if err != nil {
		return nil, err
	}
	return &pb.ActOnContactResponse{Contact: contactOf(c)}, nil
}

func (h *handlers) VerifyContact(ctx context.Context, in *pb.VerifyContactRequest) (*pb.VerifyContactResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	result := messenger.VerifyShow
	switch in.GetResult() {
	case pb.VerifyContactRequest_RESULT_CONFIRM:
		result = messenger.VerifyConfirm
	case pb.VerifyContactRequest_RESULT_REJECT:
		result = messenger.VerifyReject
	}
	v, err := m.Verify(ctx, in.GetWho(), result)
	if err != nil {
		return nil, err
	}
	return &pb.VerifyContactResponse{Digits: v.Digits, Qr: v.QR, Contact: contactOf(v.Contact)}, nil
}
