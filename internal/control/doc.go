// Package control is the contract of the local API and its client: the schema in pb, the closed list of error codes, the
// way an error crosses the socket in both directions, and a client that every face of hima uses.
//
// It never knows what is behind the socket: it imports nothing of hima but its own generated code, so that a face linked
// with it drags in no network, no database and no domain rule. The server lives in control/server for the same reason.
//
// The main type is Client. Dial makes one without touching the socket; its methods are those of the schema, every error
// they return is an *Error (or the error of the caller's context), and Watch resumes by itself from the last event seen
// when the node is restarted. A Client may be used by any number of goroutines at once.
//
// Bytes: HTTP/1.1 over a Unix socket, Connect protocol (https://connectrpc.com/docs/protocol), binary protobuf; JSON is
// answered too, so that curl can speak to a node.
package control
