package server

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/messenger"
)

func (h *handlers) Send(ctx context.Context, in *pb.SendRequest) (*pb.SendResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	msg, err := m.Send(ctx, messenger.SendInput{Who: in.GetWho(), Text: in.GetText(), IdempotencyKey: in.GetIdempotencyKey()})
	if err != nil {
		return nil, err
	}
	return &pb.SendResponse{Message: messageOf(msg)}, nil
}

func (h *handlers) Conversations(ctx context.Context, _ *pb.ConversationsRequest) (*pb.ConversationsResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	list, err := m.Conversations(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.ConversationsResponse{}
	for _, c := range list {
		out.Conversations = append(out.Conversations, conversationOf(c))
	}
	return out, nil
}

func (h *handlers) History(ctx context.Context, in *pb.HistoryRequest) (*pb.HistoryResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	page, err := m.History(ctx, messenger.HistoryQuery{
		Who: in.GetWho(), Limit: int(in.GetLimit()), Before: in.GetBefore(), Since: fromMS(in.GetSinceMs()),
	})
	if err != nil {
		return nil, err
	}
	out := &pb.HistoryResponse{Conversation: page.Conversation.String(), More: page.More}
	texts := newIDTexts()
	for _, msg := range page.Messages {
		out.Messages = append(out.Messages, texts.message(msg))
	}
	return out, nil
}

func (h *handlers) MarkRead(ctx context.Context, in *pb.MarkReadRequest) (*pb.MarkReadResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	n, err := m.MarkRead(ctx, in.GetWho(), in.GetUntil())
	if err != nil {
		return nil, err
	}
	return &pb.MarkReadResponse{Marked: int32(n)}, nil
}

func (h *handlers) SetTyping(ctx context.Context, in *pb.SetTypingRequest) (*pb.SetTypingResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	return &pb.SetTypingResponse{}, m.SetTyping(ctx, in.GetWho(), in.GetOn())
}

func (h *handlers) Cancel(ctx context.Context, in *pb.CancelRequest) (*pb.CancelResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	return &pb.CancelResponse{}, m.Cancel(ctx, in.GetMessage())
}

func (h *handlers) Resend(ctx context.Context, in *pb.ResendRequest) (*pb.ResendResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	msg, err := m.Resend(ctx, in.GetMessage())
	if err != nil {
		return nil, err
	}
	return &pb.ResendResponse{Message: messageOf(msg)}, nil
}

func (h *handlers) ListUnknown(ctx context.Context, in *pb.ListUnknownRequest) (*pb.ListUnknownResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	ids, more, err := m.Unknown(ctx, in.GetWho())
	if err != nil {
		return nil, err
	}
	out := &pb.ListUnknownResponse{More: more}
	for _, id := range ids {
		out.Messages = append(out.Messages, id.String())
	}
	return out, nil
}

func (h *handlers) Why(ctx context.Context, in *pb.WhyRequest) (*pb.WhyResponse, error) {
	m, err := h.b.Messenger()
	if err != nil {
		return nil, err
	}
	w, err := m.Why(ctx, in.GetMessage())
	if err != nil {
		return nil, err
	}
	return whyOf(w), nil
}

// Watch streams until the client leaves or the node stops. A node that stops ends the stream with unavailable, which is
// what tells a client to resume rather than to give up.
func (h *handlers) Watch(ctx context.Context, in *pb.WatchRequest, out *connect.ServerStream[pb.WatchResponse]) error {
	m, err := h.b.Messenger()
	if err != nil {
		return err
	}
	q := messenger.WatchQuery{Since: in.GetSince(), Conversation: in.GetConversation(), FromNow: in.GetFromNow()}
	err = m.Watch(ctx, q, func(e messenger.Event) error {
		return out.Send(&pb.WatchResponse{Event: eventOf(e)})
	})
	if err == nil || errors.Is(err, context.Canceled) {
		return &control.Error{Code: control.Unavailable, Message: "the node ended the stream of events"}
	}
	return err
}
