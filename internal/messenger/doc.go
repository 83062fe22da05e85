// Package messenger is the application: contacts and requests, invites, conversations and their history, sending and
// receipts, settings, and the event sequence that every face of hima follows.
//
// The main type is Messenger. It stands above the replica, whose questions it answers (replica.Members: who may read;
// replica.Gate: what may come in) and whose hooks it hears (replica.Hooks), all inside the same storage transaction, so
// that an event is stored with the change it tells of. Each duty is a small type of its own with its own file: contacts,
// gate, invites, conversations, feeds, history, sender, settings, grants, events. Why it is cut so stands in DESIGN.md.
//
// What it never knows: badger, libp2p, HTTP, terminals, and how an entry travels. Texts of other people pass package text
// before they are kept or handed out.
//
// Networks and mailboxes are two interfaces (Networks, Mail) that the daemon makes of the packages below: this package says
// whom a name means, which message is sent because a mailbox holds it, whom an offer to keep mail is from, and what a
// restored device needs to know.
//
// Nothing here assumes that an account has one device. What the owner decides (contacts, remarks, blocks, settings, read
// positions, invites) is written as entries of the self conversation and folded into tables under "m/"; the entries of
// another own device are folded by the same code (R22).
//
// Concurrency: all methods of Messenger may be called from any goroutine. Methods that take a *storage.Tx run on the
// committer and must not wait for a commit. State in memory is caches only, each owned by one mutex and brought up to
// date after the commit of what it mirrors. New starts nothing; Run ends when its context does.
package messenger
