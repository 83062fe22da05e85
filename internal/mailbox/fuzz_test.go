package mailbox

import (
	"bufio"
	"bytes"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/storage"
)

func addSeeds(f *testing.F, list ...proto.Message) {
	for _, m := range list {
		b, err := wire.Append(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// FuzzRequest: whatever a client sends, each request is answered in one frame, and what is kept stays countable.
func FuzzRequest(f *testing.F) {
	secret, _ := identity.InboxSecretFromBytes(bytes.Repeat([]byte{1}, 32))
	id, raw := secret.ID(), secret.Bytes()
	item := []byte("item")
	hash := identity.ItemHash(item)
	addSeeds(f,
		&pb.MailboxRequest{Id: 1, Of: &pb.MailboxRequest_Terms{Terms: &pb.MailboxTermsRequest{}}},
		&pb.MailboxRequest{Id: 2, Of: &pb.MailboxRequest_Open{Open: &pb.MailboxOpen{Secret: raw, Kind: pb.MailboxOpen_KIND_REQUEST, QuotaBytes: 9, Grant: item}}},
		&pb.MailboxRequest{Id: 2, Of: &pb.MailboxRequest_Open{Open: &pb.MailboxOpen{Secret: raw, Kind: pb.MailboxOpen_KIND_LOG, QuotaBytes: 9}}},
		&pb.MailboxRequest{Id: 3, Of: &pb.MailboxRequest_Deposit{Deposit: &pb.MailboxDeposit{Inbox: id.Bytes(), Item: item, Work: item, Secret: raw}}},
		&pb.MailboxRequest{Id: 4, Of: &pb.MailboxRequest_Watch{Watch: &pb.MailboxWatch{Secrets: [][]byte{raw}}}},
		&pb.MailboxRequest{Id: 5, Of: &pb.MailboxRequest_Fetch{Fetch: &pb.MailboxFetch{Secret: raw, After: 1<<64 - 1, Max: 1 << 31}}},
		&pb.MailboxRequest{Id: 6, Of: &pb.MailboxRequest_Done{Done: &pb.MailboxDone{Secret: raw, Items: [][]byte{hash[:]}}}},
		&pb.MailboxRequest{Id: 7, Of: &pb.MailboxRequest_Close{Close: &pb.MailboxClose{Secret: raw}}},
		&pb.MailboxRequest{Id: 8, Of: &pb.MailboxRequest_Renew{Renew: &pb.MailboxRenew{Secrets: [][]byte{raw}}}},
	)
	db, err := storage.Open(storage.Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { db.Close() })
	s := newServer(ServerConfig{DB: db, Key: identity.GenerateDeviceKey(), Open: true, Limits: ServerLimits{Rate: 1e9, Burst: 1 << 30, TotalItems: 100, Inboxes: 50}})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		st := s.newStream(nil, identity.DeviceID{1})
		defer s.watch.remove(st)
		for {
			var m pb.MailboxRequest
			if wire.Read(r, wire.MaxMailboxFrame, &m) != nil {
				break
			}
			reply := st.handle(t.Context(), &m)()
			if reply == nil || reply.Code == pb.MailboxReply_CODE_UNSPECIFIED || reply.Code == pb.MailboxReply_CODE_FAILED {
				t.Fatalf("answer %v to %v", reply, &m)
			}
			if n := proto.Size(reply); n > wire.MaxMailboxFrame {
				t.Fatalf("an answer of %d bytes", n)
			}
		}
		if n := s.Stats(); n.Items > 100 || n.Inboxes > 50 {
			t.Fatalf("kept %+v", n)
		}
	})
}

// FuzzReply: whatever a mailbox answers is an error or something within bounds.
func FuzzReply(f *testing.F) {
	addSeeds(f,
		&pb.MailboxReply{Id: 1, Code: pb.MailboxReply_CODE_OK, Terms: termsSeed(), Items: []*pb.MailboxItem{{Cursor: 1, Item: []byte{1}}}},
		&pb.MailboxReply{Id: 1, Code: pb.MailboxReply_CODE_FULL, Waiting: [][]byte{make([]byte, 32)}, Missing: [][]byte{make([]byte, 32)}},
	)
	c := &Client{cfg: ClientConfig{Now: time.Now}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.MailboxReply
		if wire.Read(bufio.NewReader(bytes.NewReader(b)), wire.MaxMailboxFrame, &m) != nil {
			return
		}
		if err := errorOf(m.Code); m.Code > pb.MailboxReply_CODE_FAILED && !errors.Is(err, ErrProtocol) {
			t.Fatalf("code %d: %v", m.Code, err)
		}
		if terms, err := termsFromPB(m.Terms); err == nil && (terms.Expiry <= 0 || terms.Expiry > maxTime || terms.WorkBits > identity.MaxWorkBits) {
			t.Fatalf("terms %+v", terms)
		}
		if w, missing, err := lookOf(&m); err == nil && (len(w) > maxSecrets || len(missing) > maxSecrets) {
			t.Fatal("more inboxes than one frame may name")
		}
		if _, err := c.checkReceipt(Ref{}, Deposit{Item: []byte{1}}, m.Custody); !errors.Is(err, ErrBadReceipt) {
			t.Fatalf("a receipt of nobody: %v", err)
		}
		if items, err := itemsOf(&m, 5); err == nil {
			for _, it := range items {
				if it.Cursor <= 5 || len(it.Bytes) == 0 || len(it.Bytes) > maxItem {
					t.Fatalf("item %d", it.Cursor)
				}
			}
		}
	})
}

// FuzzStored: damaged records of the own disk are errors.
func FuzzStored(f *testing.F) {
	in := inbox{local: 1, kind: Slot, quota: 2, used: 3, items: 4, next: 5, touched: 6, grant: []byte("grant")}
	f.Add([]byte(keyGone+"\x00\x00\x00\x01"), in.encode())
	f.Add([]byte(keyGone+"\x00\x00\x00\x01"), place{1, 2, 3}.encode())
	f.Fuzz(func(t *testing.T, k, v []byte) {
		var got inbox
		if got.decode(v) == nil && !bytes.Equal(got.encode(), v) {
			t.Fatal("an inbox is not what it was read from")
		}
		if p, err := decodePlace(v); err == nil && !bytes.Equal(p.encode(), v) {
			t.Fatal("a place is not what it was read from")
		}
		_, _ = decodeGone(k, v)
	})
}

func termsSeed() *pb.MailboxTerms {
	return newServer(ServerConfig{Open: true}).terms().pb()
}
