package server

import (
	"context"
	"encoding/hex"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/messenger"
	"hima/internal/text"
)

// handlers implements pbconnect.HimaHandler. It has no state of its own.
type handlers struct{ b Backend }

func (h *handlers) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	return h.b.Status(ctx)
}

func (h *handlers) Register(ctx context.Context, in *pb.RegisterRequest) (*pb.RegisterResponse, error) {
	return h.b.Register(ctx, in)
}

func (h *handlers) Login(ctx context.Context, in *pb.LoginRequest) (*pb.LoginResponse, error) {
	return h.b.Login(ctx, in)
}

func (h *handlers) Stop(ctx context.Context, in *pb.StopRequest) (*pb.StopResponse, error) {
	return &pb.StopResponse{}, h.b.Stop(ctx, in.GetLogout())
}

func (h *handlers) ChangePassword(ctx context.Context, in *pb.ChangePasswordRequest) (*pb.ChangePasswordResponse, error) {
	return &pb.ChangePasswordResponse{}, h.b.ChangePassword(ctx, in)
}

func (h *handlers) Whoami(ctx context.Context, _ *pb.WhoamiRequest) (*pb.WhoamiResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	return h.whoami(ctx, m)
}

func (h *handlers) SetProfile(ctx context.Context, in *pb.SetProfileRequest) (*pb.WhoamiResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	change := messenger.ProfileChange{Nickname: in.Nickname, ContactField: in.ContactField, Bio: in.Bio, Username: in.Username}
	if in.Username != nil {
		name, err := text.Username(in.GetUsername())
		if err != nil {
			return nil, &control.Error{Code: control.Invalid, Message: err.Error(), Hint: "choose 1 to 32 letters and digits of one script", Cause: err}
		}
		change.Username = &name
	}
	if _, err := m.SetProfile(ctx, change); err != nil {
		return nil, err
	}
	return h.whoami(ctx, m)
}

// whoami shows the profile with an invite link: the newest live one, so that looking does not make new rights to ask.
func (h *handlers) whoami(ctx context.Context, m *messenger.Messenger) (*pb.WhoamiResponse, error) {
	p, err := m.Profile(ctx)
	if err != nil {
		return nil, err
	}
	link, err := LiveInvite(ctx, m)
	if err != nil {
		return nil, err
	}
	return &pb.WhoamiResponse{Profile: Profile(p, link, h.b.HasPassword())}, nil
}

// LiveInvite returns the link of the newest invite that is not revoked, and makes one if there is none.
func LiveInvite(ctx context.Context, m *messenger.Messenger) (string, error) {
	invites, err := m.Invites(ctx)
	if err != nil {
		return "", err
	}
	var newest messenger.Invite
	for _, i := range invites {
		if !i.Revoked && (newest.Link == "" || i.Created.After(newest.Created)) {
			newest = i
		}
	}
	if newest.Link != "" {
		return newest.Link, nil
	}
	i, err := m.CreateInvite(ctx)
	return i.Link, err
}

func (h *handlers) CreateInvite(ctx context.Context, _ *pb.CreateInviteRequest) (*pb.CreateInviteResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	i, err := m.CreateInvite(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.CreateInviteResponse{Invite: inviteOf(i)}, nil
}

func (h *handlers) ListInvites(ctx context.Context, _ *pb.ListInvitesRequest) (*pb.ListInvitesResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	list, err := m.Invites(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.ListInvitesResponse{}
	for _, i := range list {
		out.Invites = append(out.Invites, inviteOf(i))
	}
	return out, nil
}

func (h *handlers) RevokeInvite(ctx context.Context, in *pb.RevokeInviteRequest) (*pb.RevokeInviteResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	token := in.GetToken()
	// A whole link is what the user has at hand more often than the token in it.
	if inv, err := identity.ParseInvite(token); err == nil {
		token = hex.EncodeToString(inv.Token[:])
	}
	return &pb.RevokeInviteResponse{}, m.RevokeInvite(ctx, token)
}

func (h *handlers) ListSettings(ctx context.Context, _ *pb.ListSettingsRequest) (*pb.ListSettingsResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	list, err := m.Settings(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.ListSettingsResponse{}
	for _, s := range list {
		out.Settings = append(out.Settings, settingOf(s))
	}
	return out, nil
}

func (h *handlers) SetSetting(ctx context.Context, in *pb.SetSettingRequest) (*pb.SetSettingResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	s, err := m.SetSetting(ctx, in.GetKey(), in.GetValue())
	if err != nil {
		return nil, err
	}
	return &pb.SetSettingResponse{Setting: settingOf(s)}, nil
}
