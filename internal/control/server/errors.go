package server

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/messenger"
	"hima/storage"
)

// translate is the one place where errors of the packages below get their code. It stands inside
// control.ServerInterceptor, which puts the code on the wire.
type translate struct{}

func (translate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err != nil {
			return nil, Translate(err)
		}
		return resp, nil
	}
}

func (translate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (translate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			return Translate(err)
		}
		return nil
	}
}

// codes pairs the sentinels of the packages below with the codes of the local API, first match wins.
func codes() []struct {
	is   error
	code control.Code
	hint string
} {
	return []struct {
		is   error
		code control.Code
		hint string
	}{
		{messenger.ErrInvalid, control.Invalid, ""},
		{messenger.ErrNotFound, control.NotFound, ""},
		{messenger.ErrAmbiguous, control.Ambiguous, ""},
		{messenger.ErrExists, control.Exists, ""},
		{messenger.ErrNotContact, control.NotContact, ""},
		{messenger.ErrWaitingForAccept, control.WaitingForAccept, ""},
		{messenger.ErrTooLate, control.TooLate, ""},
		{messenger.ErrTooLarge, control.TooLarge, ""},
		{messenger.ErrDenied, control.Denied, ""},
		{messenger.ErrFull, control.Full, ""},
		{messenger.ErrConflict, control.Conflict, ""},
		{messenger.ErrReadOnly, control.ReadOnly, ""},
		{messenger.ErrUnavailable, control.Unavailable, ""},
		{messenger.ErrNotMember, control.NotMember, ""},
		{messenger.ErrNotAllowed, control.NotAllowed, ""},
		{messenger.ErrLastOwner, control.LastOwner, ""},
		{messenger.ErrDissolved, control.Dissolved, ""},
		{messenger.ErrMuted, control.Muted, ""},
		{messenger.ErrExpired, control.Expired, ""},
		{identity.ErrWrongPassword, control.WrongPassword, "check the password; nothing was changed"},
		{identity.ErrDamagedVault, control.Damaged, "restore the vault file from a backup, or register again with the recovery phrase"},
		{storage.ErrDiskFull, control.DiskFull, "free some disk space; nothing was written"},
		{storage.ErrDamaged, control.Damaged, "the database does not read back; restore the profile from a backup"},
		{storage.ErrNewer, control.Version, "this profile was written by a newer hima; update this one"},
		{storage.ErrTooLarge, control.TooLarge, ""},
		{storage.ErrLocked, control.Conflict, "end the other hima that has this database open"},
		{storage.ErrWrongKey, control.Damaged, "the vault and the database do not belong together; restore both from one backup"},
		{identity.ErrNewerVault, control.Version, "this profile was written by a newer hima; update this one"},
		{storage.ErrClosed, control.Unavailable, "the node is stopping; try again in a moment"},
	}
}

func Translate(err error) error {
	if _, ok := errors.AsType[*control.Error](err); ok {
		return err
	}
	if _, ok := errors.AsType[control.Code](err); ok {
		return err
	}
	out := &control.Error{Message: err.Error(), Cause: err}
	for _, c := range codes() {
		if errors.Is(err, c.is) {
			out.Code, out.Hint = c.code, c.hint
			break
		}
	}
	if out.Code == "" {
		return err // the outer interceptor makes it internal, or passes on the context's own errors
	}
	if refusal, ok := errors.AsType[*messenger.Error](err); ok {
		out.Hint = refusal.Hint
		for _, c := range refusal.Candidates {
			out.Candidates = append(out.Candidates, control.Candidate{
				Account: accountText(c.Account), Username: c.Username, Nickname: c.Nickname, Source: string(c.Source),
				Group: groupText(c.Group),
			})
		}
	}
	return out
}
