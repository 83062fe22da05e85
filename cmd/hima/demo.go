package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/daemon"
)

const (
	// demoPatience bounds every step of the demo: on one machine each takes milliseconds.
	demoPatience = 20 * time.Second
	// Names of the two people. The echo answers every message with its own text.
	demoYou  = "you"
	demoEcho = "parrot"
)

func (a *app) demoCommand() *cobra.Command {
	return a.command(spec{
		use: "demo", id: "demo", example: "  hima demo\n  echo hello | hima demo",
		run: func(ctx context.Context, _ []string) error { return a.demo(ctx) },
	})
}

// demo runs two nodes in a folder that is gone afterwards, makes them contacts, and opens a chat on one of them. The
// other one answers. Everything goes the real way: two databases, two keys, one TCP connection over loopback.
func (a *app) demo(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "hima-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	nodes, nodeCtx := errgroup.WithContext(context.WithoutCancel(ctx))
	nodeCtx, stop := context.WithCancel(nodeCtx)
	defer func() {
		stop()
		// A node that fails at its end has nothing left to lose; the chat's own error is the one to tell.
		if nodeErr := nodes.Wait(); err == nil && nodeErr != nil && !errors.Is(nodeErr, context.Canceled) {
			err = daemonError(nodeErr)
		}
	}()
	a.note("demo.starting", "Folder", dir)
	began := time.Now()
	you, err := a.demoNode(nodeCtx, nodes, dir, demoYou, a.t("demo.you"))
	if err != nil {
		return err
	}
	defer you.Close()
	echo, err := a.demoNode(nodeCtx, nodes, dir, demoEcho, a.t("demo.echo"))
	if err != nil {
		return err
	}
	defer echo.Close()
	if err := demoMeet(ctx, you, echo, demoEcho); err != nil {
		return err
	}
	nodes.Go(func() error { return demoAnswer(nodeCtx, echo) })
	a.note("demo.ready", "Time", duration(time.Since(began).Round(time.Millisecond)))
	return a.chat(ctx, you, demoEcho, chatOptions{awaitReplies: demoPatience, opening: a.t("demo.opening")})
}

// demoNode starts one node on loopback and registers on it.
func (a *app) demoNode(ctx context.Context, nodes *errgroup.Group, home, username, nickname string) (*control.Client, error) {
	ready := make(chan struct{})
	failed := make(chan error, 1)
	multicast := false
	nodes.Go(func() error {
		err := daemon.Run(ctx, daemon.Config{
			Home: home, Profile: username, Create: true, Logger: slog.New(slog.DiscardHandler), Ready: func() { close(ready) },
			Settings: daemon.Settings{Listen: []string{"/ip4/127.0.0.1/tcp/0"}, MDNS: &multicast},
		})
		if err != nil {
			failed <- err
		}
		return err
	})
	select {
	case <-ready:
	case err := <-failed:
		return nil, daemonError(err)
	case <-time.After(demoPatience):
		return nil, fail(control.Unavailable, "error.start_slow")
	}
	socket, err := nodeSocket(home, username)
	if err != nil {
		return nil, err
	}
	node := control.Dial(socket)
	_, err = node.Register(ctx, &pb.RegisterRequest{Username: username, Nickname: nickname, NoPassword: true})
	if err != nil {
		node.Close()
		return nil, fmt.Errorf("registering %s in %s: %w", username, filepath.Base(home), err)
	}
	return node, nil
}

// demoMeet makes the two contacts: an invite link, a request, an acceptance. name is the username behind echo.
func demoMeet(ctx context.Context, you, echo *control.Client, name string) error {
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	invite, err := echo.CreateInvite(ctx, &pb.CreateInviteRequest{})
	if err != nil {
		return err
	}
	link := invite.GetInvite().GetLink()
	// Each side watches from the beginning, so that it does not matter what comes first.
	asked := errors.New("asked")
	waitFor := func(node *control.Client, done func() (bool, error)) error {
		err := node.Watch(ctx, control.WatchOptions{}, func(*pb.Event) error {
			if ok, err := done(); err != nil || !ok {
				return err
			}
			return asked
		})
		if errors.Is(err, asked) {
			return nil
		}
		return err
	}
	if _, err := you.AddContact(ctx, &pb.AddContactRequest{Who: link}); err != nil {
		return err
	}
	err = waitFor(echo, func() (bool, error) {
		resp, err := echo.ListRequests(ctx, &pb.ListRequestsRequest{})
		for _, r := range resp.GetRequests() {
			if r.GetIncoming() && r.GetState() == "waiting" {
				_, err := echo.ActOnContact(ctx, &pb.ActOnContactRequest{Who: r.GetAccount(), Act: pb.ActOnContactRequest_ACT_ACCEPT})
				return err == nil, err
			}
		}
		return false, err
	})
	if err != nil {
		return err
	}
	return waitFor(you, func() (bool, error) {
		resp, err := you.ListContacts(ctx, &pb.ListContactsRequest{})
		for _, c := range resp.GetContacts() {
			if c.GetRelation() == "contact" && c.GetUsername() == name {
				return true, nil
			}
		}
		return false, err
	})
}

// demoAnswer sends every text back.
func demoAnswer(ctx context.Context, echo *control.Client) error {
	err := echo.Watch(ctx, control.WatchOptions{FromNow: true}, func(e *pb.Event) error {
		m := e.GetMessage()
		if e.GetType() != eventMessage || m.GetOwn() || m.GetKind() != "text" {
			return nil
		}
		if _, err := echo.MarkRead(ctx, &pb.MarkReadRequest{Who: m.GetPeer(), Until: m.GetId()}); err != nil {
			return err
		}
		_, err := echo.Send(ctx, &pb.SendRequest{Who: m.GetPeer(), Text: m.GetText(), IdempotencyKey: "echo-" + m.GetId()})
		return err
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}
