package feed

import "errors"

// The errors of the Check functions. Each failure wraps exactly one of them.
var (
	// ErrMalformed: the bytes are not what the spec describes. Says nothing about the author.
	ErrMalformed = errors.New("malformed")
	// ErrTooLarge: a limit of limits.go is exceeded.
	ErrTooLarge = errors.New("too large")
	// ErrBadSignature: the signature is not that of the author's device over the last header. The run came from
	// somebody who made or damaged it; the author is not to blame (R4).
	ErrBadSignature = errors.New("bad signature")
	// ErrCertificate: the certificate of a first entry is missing, wrong, or does not name the author and device.
	ErrCertificate = errors.New("bad certificate")
	// ErrBrokenChain: inside the run an entry does not follow the one before it.
	ErrBrokenChain = errors.New("broken chain")
	// ErrClock: a Lamport clock breaks R7.
	ErrClock = errors.New("clock out of range")
	// ErrBody: a body is not the one that its header names. The header may still be genuine.
	ErrBody = errors.New("body does not match its header")
	// ErrGap: the run begins later than right after the tip. It may be kept by CheckDetached.
	ErrGap = errors.New("gap in feed")
	// ErrKnown: every entry of the run is at or below the tip and nothing contradicts it.
	ErrKnown = errors.New("nothing new")
	// ErrFork: the run is signed by the author's device and contradicts what the tip says (R3).
	ErrFork = errors.New("feed forked")
)
