package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/control/pb/pbconnect"
)

// fakeNode answers what a test gives it, so that every case of an answer can be shown, also those that take days to come
// about with real nodes.
type fakeNode struct {
	pbconnect.UnimplementedHimaHandler
	networks  []*pb.Network
	joined    *pb.JoinNetworkResponse
	found     *pb.SearchResponse
	find      func(who string) (*pb.FindResponse, error)
	added     *pb.AddContactResponse
	mailboxes *pb.ListMailboxesResponse
	checks    *pb.DoctorResponse
	profile   *pb.Profile
	why       *pb.WhyResponse
	resend    func(message string) (*pb.Message, error)
	unknown   []*pb.ListUnknownResponse // one after the other
	refuse    error
	events    []*pb.Event
	groups    fakeGroups

	// What was asked last.
	askedAdd   *pb.AddContactRequest
	askedOffer *pb.OfferMailboxRequest
	askedSet   *pb.SetProfileRequest
}

func (f *fakeNode) JoinNetwork(context.Context, *pb.JoinNetworkRequest) (*pb.JoinNetworkResponse, error) {
	return f.joined, f.refuse
}

func (f *fakeNode) LeaveNetwork(context.Context, *pb.LeaveNetworkRequest) (*pb.LeaveNetworkResponse, error) {
	return &pb.LeaveNetworkResponse{}, f.refuse
}

func (f *fakeNode) ListNetworks(context.Context, *pb.ListNetworksRequest) (*pb.ListNetworksResponse, error) {
	return &pb.ListNetworksResponse{Networks: f.networks}, f.refuse
}

func (f *fakeNode) Search(context.Context, *pb.SearchRequest) (*pb.SearchResponse, error) {
	return f.found, f.refuse
}

func (f *fakeNode) Find(_ context.Context, in *pb.FindRequest) (*pb.FindResponse, error) {
	return f.find(in.GetWho())
}

func (f *fakeNode) AddContact(_ context.Context, in *pb.AddContactRequest) (*pb.AddContactResponse, error) {
	f.askedAdd = in
	return f.added, f.refuse
}

func (f *fakeNode) ListContacts(context.Context, *pb.ListContactsRequest) (*pb.ListContactsResponse, error) {
	return &pb.ListContactsResponse{}, nil
}

func (f *fakeNode) ListMailboxes(context.Context, *pb.ListMailboxesRequest) (*pb.ListMailboxesResponse, error) {
	return f.mailboxes, f.refuse
}

func (f *fakeNode) AddMailbox(context.Context, *pb.AddMailboxRequest) (*pb.AddMailboxResponse, error) {
	return &pb.AddMailboxResponse{Mailbox: f.mailboxes.GetMailboxes()[0]}, f.refuse
}

func (f *fakeNode) RemoveMailbox(context.Context, *pb.RemoveMailboxRequest) (*pb.RemoveMailboxResponse, error) {
	return &pb.RemoveMailboxResponse{Mailbox: f.mailboxes.GetMailboxes()[1]}, f.refuse
}

func (f *fakeNode) OfferMailbox(_ context.Context, in *pb.OfferMailboxRequest) (*pb.OfferMailboxResponse, error) {
	f.askedOffer = in
	return &pb.OfferMailboxResponse{Offer: f.mailboxes.GetOffers()[0]}, f.refuse
}

func (f *fakeNode) Doctor(context.Context, *pb.DoctorRequest) (*pb.DoctorResponse, error) {
	return f.checks, f.refuse
}

func (f *fakeNode) Whoami(context.Context, *pb.WhoamiRequest) (*pb.WhoamiResponse, error) {
	return &pb.WhoamiResponse{Profile: f.profile}, nil
}

func (f *fakeNode) SetProfile(_ context.Context, in *pb.SetProfileRequest) (*pb.WhoamiResponse, error) {
	f.askedSet = in
	return &pb.WhoamiResponse{Profile: f.profile}, f.refuse
}

func (f *fakeNode) Why(context.Context, *pb.WhyRequest) (*pb.WhyResponse, error) { return f.why, nil }

func (f *fakeNode) Resend(_ context.Context, in *pb.ResendRequest) (*pb.ResendResponse, error) {
	m, err := f.resend(in.GetMessage())
	return &pb.ResendResponse{Message: m}, err
}

func (f *fakeNode) ListUnknown(context.Context, *pb.ListUnknownRequest) (*pb.ListUnknownResponse, error) {
	if len(f.unknown) == 0 {
		return &pb.ListUnknownResponse{}, f.refuse
	}
	list := f.unknown[0]
	f.unknown = f.unknown[1:]
	return list, f.refuse
}

func (f *fakeNode) Watch(_ context.Context, _ *pb.WatchRequest, out *connect.ServerStream[pb.WatchResponse]) error {
	for _, e := range f.events {
		if err := out.Send(&pb.WatchResponse{Event: e}); err != nil {
			return err
		}
	}
	return nil
}

// fakeProfile is whose node a fake one is.
const fakeProfile = "alice"

// serve lets the node answer at the socket of a profile in a home of its own.
func (f *fakeNode) serve(t *testing.T) (home string) {
	t.Helper()
	home, err := os.MkdirTemp("", "hf") // short: the path of a socket is
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	socket, err := nodeSocket(home, fakeProfile)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Dir(socket), 0o700))
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle(pbconnect.NewHimaHandler(f, connect.WithInterceptors(control.ServerInterceptor())))
	srv := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return home
}

// result is how a command of a test ended.
type result struct {
	code           int
	stdout, stderr string
}

// do runs one command line against the node.
func (f *fakeNode) do(t *testing.T, lang string, args ...string) result {
	t.Helper()
	env := map[string]string{"HIMA_HOME": f.serve(t), "HIMA_PROFILE": fakeProfile, "LANG": lang}
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	var files []*os.File
	for range 2 {
		file, err := os.CreateTemp(t.TempDir(), "out")
		require.NoError(t, err)
		defer file.Close()
		files = append(files, file)
	}
	a := newApp(null, files[0], files[1], func(key string) string { return env[key] })
	r := result{code: a.run(t.Context(), args)}
	for i, to := range []*string{&r.stdout, &r.stderr} {
		_, err := files[i].Seek(0, io.SeekStart)
		require.NoError(t, err)
		b, err := io.ReadAll(files[i])
		require.NoError(t, err)
		*to = string(b)
	}
	return r
}

// shownTime is a time as people read it, which depends on where they are.
var shownTime = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d`)

// requireGolden compares with testdata/golden/NAME; UPDATE_GOLDEN=1 writes it.
func requireGolden(t *testing.T, name, got string) {
	t.Helper()
	got = shownTime.ReplaceAllString(got, "TIME")
	path := filepath.Join(goldenFolder, name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "%s; UPDATE_GOLDEN=1 writes it anew", path)
}

// requireAnswers compares how a command line is answered with golden files: in both languages and as JSON.
func (f *fakeNode) requireAnswers(t *testing.T, golden string, code int, args ...string) {
	t.Helper()
	for lang, ending := range map[string]string{"en_US.UTF-8": ".en.txt", "zh_CN.UTF-8": ".zh.txt"} {
		r := f.do(t, lang, args...)
		require.Equal(t, code, r.code, r)
		require.NotContains(t, r.stdout+r.stderr, "\x1b")
		require.NotContains(t, r.stdout+r.stderr, "<no value>")
		requireGolden(t, golden+ending, r.stdout+r.stderr)
	}
	r := f.do(t, "C", append([]string{"--json"}, args...)...)
	require.Equal(t, code, r.code, r)
	requireGolden(t, golden+".json", r.stdout)
}
