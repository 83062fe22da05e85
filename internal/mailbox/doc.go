// Package mailbox is store-and-forward, in both roles: the node that keeps sealed items for people who are away, and the
// one that brings and fetches them.
//
// An inbox is the hash of a secret. Whoever knows the hash may leave an item, whoever knows the secret may fetch and
// remove; the node that keeps them knows neither who left an item nor, on disk, who fetches it. A deposit is answered by
// a signed custody receipt after it is durable. What an item says nobody here knows.
//
// Server is the keeping side: NewServer, then Run. Client is the other: it needs no Run, holds one stream per mailbox
// while there is something to say, and is ended by Close. All methods of both may be called from any goroutine.
//
// Specification: docs/spec/mailbox.md.
package mailbox
