package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/control"
	"hima/internal/control/pb"
)

// newResender is a node that sends messages again, but not those that are refused.
func newResender(refused map[string]error) (f *fakeNode, asked *[]string) {
	asked = &[]string{}
	f = &fakeNode{resend: func(message string) (*pb.Message, error) {
		*asked = append(*asked, message)
		if err := refused[message]; err != nil {
			return nil, err
		}
		return &pb.Message{Id: strings.Repeat("0", 56) + message, Kind: "text", Text: "hello", Own: true, State: "pending"}, nil
	}}
	return f, asked
}

// TestResendSeveral: of each message it is told what became of it; one that is refused keeps no other from it.
func TestResendSeveral(t *testing.T) {
	f, asked := newResender(map[string]error{
		"bbbbbbbb": &control.Error{Code: control.Exists, Message: "the message was sent again already", Hint: "`hima why` says how far a message got"},
		"cccccccc": &control.Error{Code: control.Ambiguous, Message: "several messages begin like this", Hint: "give more of the ID"},
	})
	f.requireAnswers(t, "resend", exitFailed, "resend", "aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd")
	require.Equal(t, []string{"aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"}, (*asked)[:4])
	r := f.do(t, "C", "--json", "resend", "aaaaaaaa")
	require.Equal(t, exitOK, r.code)
	require.Contains(t, r.stdout, `"replaces":"aaaaaaaa"`)
	r = f.do(t, "C", "--json", "resend", "bbbbbbbb")
	require.Equal(t, exitFailed, r.code)
	require.Empty(t, r.stdout)
	require.Contains(t, r.stderr, `"error":"exists"`, "of one alone it is the error of the command")
	require.Equal(t, exitUsage, f.do(t, "C", "resend").code)
	require.Equal(t, exitUsage, f.do(t, "C", "resend", "--all", "bob", "aaaaaaaa").code)

	// What is wrong with the node is wrong for all of them.
	f, asked = newResender(map[string]error{"aaaaaaaa": &control.Error{Code: control.Locked, Message: "locked"}})
	r = f.do(t, "C", "resend", "aaaaaaaa", "dddddddd")
	require.Equal(t, exitNotAllowed, r.code)
	require.Equal(t, []string{"aaaaaaaa"}, *asked)
}

// TestResendAll: a conversation is sent again page by page, up to the first message that is refused.
func TestResendAll(t *testing.T) {
	exists := &control.Error{Code: control.Exists, Message: "the message was sent again already"}
	f, asked := newResender(map[string]error{"bbbbbbbb": exists})
	f.unknown = []*pb.ListUnknownResponse{{Messages: []string{"aaaaaaaa", "bbbbbbbb"}, More: true}, {Messages: []string{"cccccccc"}}}
	r := f.do(t, "C", "--json", "resend", "--all", "bob")
	require.Equal(t, exitOK, r.code, r)
	require.Equal(t, []string{"aaaaaaaa", "bbbbbbbb", "cccccccc"}, *asked)
	require.Equal(t, 2, strings.Count(r.stdout, `"replaces":`))
	require.NotContains(t, r.stdout, "failed")

	r = f.do(t, "C", "resend", "--all", "bob")
	require.Equal(t, exitOK, r.code)
	require.Empty(t, r.stdout)
	require.Contains(t, r.stderr, "Nothing here")

	f, asked = newResender(map[string]error{"bbbbbbbb": &control.Error{Code: control.Denied, Message: "no"}})
	f.unknown = []*pb.ListUnknownResponse{{Messages: []string{"aaaaaaaa", "bbbbbbbb", "cccccccc"}}}
	r = f.do(t, "C", "resend", "--all", "bob")
	require.Equal(t, exitNotAllowed, r.code)
	require.Equal(t, []string{"aaaaaaaa", "bbbbbbbb"}, *asked)

	// What was settled or replaced since it was listed is left out; what is listed still was refused.
	for _, code := range []control.Code{control.NotFound, control.Invalid} {
		gone := &control.Error{Code: code, Message: "gone"}
		f, asked = newResender(map[string]error{"bbbbbbbb": gone})
		f.unknown = []*pb.ListUnknownResponse{{Messages: []string{"aaaaaaaa", "bbbbbbbb", "cccccccc"}}, {Messages: []string{"cccccccc"}}}
		r = f.do(t, "C", "--json", "resend", "--all", "bob")
		require.Equal(t, exitOK, r.code, r)
		require.Equal(t, []string{"aaaaaaaa", "bbbbbbbb", "cccccccc"}, *asked)
		require.Equal(t, 2, strings.Count(r.stdout, `"replaces":`))
		require.NotContains(t, r.stdout+r.stderr, "gone")

		f, asked = newResender(map[string]error{"bbbbbbbb": gone})
		f.unknown = []*pb.ListUnknownResponse{{Messages: []string{"bbbbbbbb", "cccccccc"}}, {Messages: []string{"bbbbbbbb", "cccccccc"}}}
		r = f.do(t, "C", "--json", "resend", "--all", "bob")
		require.Equal(t, exitCode(gone), r.code, r)
		require.Equal(t, []string{"bbbbbbbb"}, *asked)
		require.Contains(t, r.stderr, "gone")
	}
	f.refuse = &control.Error{Code: control.NotFound, Message: "nobody"}
	require.Equal(t, exitFailed, f.do(t, "C", "resend", "--all", "zoe").code)
}
