// Package wire frames protobuf messages on a stream: a uvarint length, then that many bytes.
//
// Every protocol of hima reads through [Read], with the limit of its own frame type from limits.go. Read decodes and
// nothing else: what it returns is still untrusted, and the packages above turn it into checked types before use.
//
// The package knows no protocol, no key and no network; it works on readers and writers. It has no state, so all
// functions may be called from any goroutine, but one bufio.Reader or io.Writer belongs to one caller at a time.
//
// Specification: docs/spec/identity.md, section "Framing". The messages are in package pb.
package wire
