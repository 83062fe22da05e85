package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/messenger"
	"hima/internal/wire/pb"
	"hima/storage"
)

// The other process of a measurement is this program again. It takes requests, one JSON object a line, on its standard
// input and answers each with one on its standard output.

type request struct {
	Do   string `json:"do"` // hello, accept, received, verify, stop
	Who  string `json:"who,omitempty"`
	From uint64 `json:"from,omitempty"`
	N    int    `json:"n,omitempty"`
}

type answer struct {
	Error   string   `json:"error,omitempty"`
	Link    string   `json:"link,omitempty"`
	Account string   `json:"account,omitempty"`
	Device  string   `json:"device,omitempty"`
	Addrs   []string `json:"addrs,omitempty"`
	N       uint64   `json:"n,omitempty"`
}

// peerProfile names the environment variable with the file for the other process's CPU profile.
const peerProfile = "HIMA_BENCH_PEER_PROFILE"

// servePeer is the main of the other process.
func servePeer(dir string) error {
	s, err := openStack(dir, "bob")
	if err != nil {
		return err
	}
	f, err := openFloor(filepath.Join(dir, "floor-bob"))
	if err != nil {
		return err
	}
	serveFloor(s.node, f)
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var q request
		if err := in.Decode(&q); err != nil || q.Do == "stop" {
			return errors.Join(s.close(), f.db.Close())
		}
		a, err := s.serve(q)
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

func (s *stack) serve(q request) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch q.Do {
	case "hello":
		in, err := s.messenger.CreateInvite(ctx)
		return answer{Link: in.Link, Account: s.account.String(), Device: s.device.String(), Addrs: s.node.Addrs()}, err
	case "accept":
		var err error
		for range 600 { // the request may be under way
			if _, err = s.messenger.Accept(ctx, q.Who); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		return answer{}, err
	case "verify":
		return answer{}, s.verify(q.Who, q.From, q.N)
	}
	return answer{}, fmt.Errorf("unknown request %q", q.Do)
}

// verify checks that the chat feed of an account's device holds the texts 0..n-1, each exactly once, from a number on.
func (s *stack) verify(device string, from uint64, n int) error {
	dev, err := identity.ParseDeviceID(device)
	if err != nil {
		return err
	}
	author, ok := s.directory.DeviceAccount(dev)
	if !ok {
		return errors.New("the author's device is unknown")
	}
	id := feed.FeedID{Conversation: feed.DirectConversation(s.account, author), Number: feed.Chat, Device: dev}
	seen, count := make([]bool, n), 0
	err = s.db.View(func(tx *storage.Tx) error {
		return s.replica.Entries(tx, id, from, from+uint64(n)-1, func(e feed.Entry) (bool, error) {
			content, err := e.Content()
			if err != nil {
				return false, err
			}
			var t pb.Text
			if err := proto.Unmarshal(content, &t); err != nil {
				return false, err
			}
			var i int
			if _, err := fmt.Sscanf(t.GetText(), "%08d", &i); err != nil || i < 0 || i >= n || seen[i] || t.GetText() != text(i) {
				return false, fmt.Errorf("entry %d holds %q", e.Seq, t.GetText())
			}
			seen[i] = true
			count++
			return true, nil
		})
	})
	if err == nil && count != n {
		err = fmt.Errorf("%d of %d messages are there", count, n)
	}
	return err
}

// peer is the other process, seen from this one.
type peer struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *json.Decoder
	account identity.AccountID
	device  identity.DeviceID
	addrs   []string
	link    string
}

func startPeer(dir string) (*peer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &peer{cmd: exec.Command(self, "-dir", dir, "-cpuprofile", os.Getenv(peerProfile), "peer")}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = json.NewDecoder(bufio.NewReader(out))
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	a, err := p.do(request{Do: "hello"})
	if err != nil {
		return nil, err
	}
	p.link, p.addrs = a.Link, a.Addrs
	if p.account, err = identity.ParseAccountID(a.Account); err != nil {
		return nil, err
	}
	p.device, err = identity.ParseDeviceID(a.Device)
	return p, err
}

func (p *peer) do(q request) (answer, error) {
	if err := json.NewEncoder(p.in).Encode(q); err != nil {
		return answer{}, err
	}
	var a answer
	if err := p.out.Decode(&a); err != nil {
		return a, fmt.Errorf("the other process: %w", err)
	}
	if a.Error != "" {
		return a, errors.New("the other process: " + a.Error)
	}
	return a, nil
}

func (p *peer) stop() error {
	_ = json.NewEncoder(p.in).Encode(request{Do: "stop"}) // Wait tells if it did not understand
	return errors.Join(p.in.Close(), p.cmd.Wait())
}

// pair is two processes whose accounts are contacts of each other.
type pair struct {
	dir string
	*stack
	other *peer
}

func newPair(ctx context.Context, dir string) (*pair, error) {
	s, err := openStack(dir, "alice")
	if err != nil {
		return nil, err
	}
	p := &pair{dir: dir, stack: s}
	if p.other, err = startPeer(dir); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if _, _, err := s.messenger.AddContact(ctx, messenger.AddContact{Who: p.other.link}); err != nil {
		return p, err
	}
	if err := p.connect(ctx); err != nil {
		return p, err
	}
	if _, err := p.other.do(request{Do: "accept", Who: s.account.String()}); err != nil {
		return p, err
	}
	for ctx.Err() == nil {
		contacts, err := s.messenger.Contacts(ctx, true)
		if err != nil {
			return p, err
		}
		for _, c := range contacts {
			if c.Account == p.other.account && c.Relation == messenger.RelationContact {
				return p, nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return p, ctx.Err()
}

// connect opens the session to the other process.
func (p *pair) connect(ctx context.Context) error {
	p.node.Remember(p.other.device, p.other.addrs)
	return p.open(ctx, p.other.device)
}

func (p *pair) close() error {
	if p == nil {
		return nil
	}
	var err error
	if p.other != nil {
		err = p.other.stop()
	}
	return errors.Join(err, p.stack.close())
}
