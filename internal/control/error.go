package control

import (
	"context"
	"errors"
	"io"
	"net"

	"connectrpc.com/connect"

	"hima/internal/control/pb"
)

// Error is a refusal as both sides of the socket see it.
type Error struct {
	// Code is from the closed list.
	Code Code
	// Message is one English sentence without a full stop, for people; faces in other languages translate the code.
	Message string
	// Hint names the next step, English; may be empty.
	Hint string
	// Candidates are the people that an ambiguous name may mean.
	Candidates []Candidate
	// Cause stays on its own side of the socket; may be nil.
	Cause error
}

// Candidate is one of several people a name may mean.
type Candidate struct {
	Account  string
	Username string
	Nickname string
	Source   string // contact, nearby, request, network, member
	Group    string // of a group: its ID; then Account is empty and Nickname is its name
}

func (e *Error) Error() string {
	if e.Message == "" {
		return string(e.Code)
	}
	return e.Message
}

func (e *Error) Unwrap() error { return e.Cause }

// Is reports whether target is the code of e.
func (e *Error) Is(target error) bool {
	c, ok := target.(Code)
	return ok && c == e.Code
}

// CodeOf returns the code of err at any depth; "" for nil and Internal for an error that carries none.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	if c, ok := errors.AsType[Code](err); ok {
		return c
	}
	return Internal
}

// ToConnect turns any error of a handler into what crosses the socket. Errors without a code become Internal; the errors
// of a context keep their meaning.
func ToConnect(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*connect.Error](err); ok {
		return err // refused by connect itself, before any handler
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		switch {
		case errors.Is(err, context.Canceled):
			return connect.NewError(connect.CodeCanceled, err)
		case errors.Is(err, context.DeadlineExceeded):
			return connect.NewError(connect.CodeDeadlineExceeded, err)
		}
		e = &Error{Code: CodeOf(err), Message: err.Error()}
	}
	detail := &pb.ErrorDetail{Code: string(e.Code), Hint: e.Hint}
	for _, c := range e.Candidates {
		detail.Candidates = append(detail.Candidates, &pb.Candidate{
			Account: c.Account, Username: c.Username, Nickname: c.Nickname, Source: c.Source, Group: c.Group,
		})
	}
	out := connect.NewError(connectCode(e.Code), errors.New(e.Error()))
	if d, err := connect.NewErrorDetail(detail); err == nil {
		out.AddDetail(d)
	}
	return out
}

// What is said of a node that went away: what was asked of it may be done, and whoever asks again may do it twice.
const (
	wentAway  = "the node went away during the call"
	lookFirst = "it may have been done all the same: look before you ask for it again"
)

// FromConnect turns an error of the generated client into an *Error. Errors of the caller's own context come back as they
// are, so that an interrupt is never mistaken for a refusal.
func FromConnect(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cause := ctx.Err(); cause != nil {
		return cause
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return &Error{Code: NotRunning, Message: "the node is not running", Cause: err}
	}
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return &Error{Code: Unavailable, Message: wentAway, Hint: lookFirst, Cause: err}
	}
	for _, d := range ce.Details() {
		v, err := d.Value()
		if err != nil {
			continue
		}
		if detail, ok := v.(*pb.ErrorDetail); ok {
			return fromDetail(ce.Message(), detail)
		}
	}
	e := &Error{Code: fallbackCode(ce), Message: ce.Message(), Cause: err}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		e.Code = Unavailable // cut off in the middle of an answer; Connect calls that an internal error
	}
	if e.Code == Unavailable {
		e.Message, e.Hint = wentAway, lookFirst // the cause speaks of sockets and HTTP
	}
	return e
}

func fromDetail(message string, d *pb.ErrorDetail) *Error {
	e := &Error{Code: Code(d.GetCode()), Message: message, Hint: d.GetHint()}
	if !e.Code.known() {
		// A newer node may know more codes; an older face must still treat it as a failure.
		e.Code = Internal
	}
	for _, c := range d.GetCandidates() {
		e.Candidates = append(e.Candidates, Candidate{
			Account: c.GetAccount(), Username: c.GetUsername(), Nickname: c.GetNickname(), Source: c.GetSource(),
			Group: c.GetGroup(),
		})
	}
	return e
}

// connectCode picks the nearest code of the Connect protocol, for clients that know no details (curl, a browser).
func connectCode(c Code) connect.Code {
	switch c {
	case Invalid, Ambiguous, TooLarge:
		return connect.CodeInvalidArgument
	case NotFound, NoProfile:
		return connect.CodeNotFound
	case Exists:
		return connect.CodeAlreadyExists
	case Locked, WrongPassword:
		return connect.CodeUnauthenticated
	case NotContact, WaitingForAccept, TooLate, ReadOnly, NotMember, LastOwner, Dissolved, Expired:
		return connect.CodeFailedPrecondition
	case Denied, NotAllowed, Muted:
		return connect.CodePermissionDenied
	case Full, DiskFull:
		return connect.CodeResourceExhausted
	case Conflict:
		return connect.CodeAborted
	case Version:
		return connect.CodeUnimplemented
	case Damaged:
		return connect.CodeDataLoss
	case NotRunning, Unavailable:
		return connect.CodeUnavailable
	}
	return connect.CodeInternal
}

// fallbackCode reads an error that carries no detail: one of connect's own, or of a server that is not hima.
func fallbackCode(e *connect.Error) Code {
	switch e.Code() {
	case connect.CodeInvalidArgument:
		return Invalid
	case connect.CodeNotFound, connect.CodeUnimplemented:
		return Version // the node does not know the call: it is older than this client
	case connect.CodeResourceExhausted:
		return TooLarge
	case connect.CodePermissionDenied, connect.CodeUnauthenticated:
		return Denied
	case connect.CodeUnavailable, connect.CodeUnknown, connect.CodeCanceled, connect.CodeAborted, connect.CodeDeadlineExceeded:
		return Unavailable
	}
	return Internal
}
