// Package server is the node's end of the local API: it serves the schema of package control over a Unix socket, and turns
// each call into one call of the messenger or of the daemon's Backend.
//
// It never decides anything about people, messages or keys: those rules live in messenger and daemon. What it adds is the
// door: only the owner of the socket may come in (mode 0600 and a check of the peer's user ID), requests are bounded, a
// browser is refused, and every error leaves with a code of the closed list in package control.
//
// The main type is Server. Listen makes the socket, Serve answers until its context ends and then waits for the handlers.
// Handlers run at once on goroutines of net/http; the server itself holds no mutable state.
package server
