// Package daemon is one running profile: it keeps the profile's folder, opens everything in order, wires the parts to each
// other, runs them in one errgroup and closes them in reverse. It serves register and login while the keys are locked.
//
// It never knows a rule of the domain: who may write to whom, what an entry says, when to try again. It is the one package
// that may import all others.
//
// It also runs the other kind of node: RunBootstrap serves a network, as the node that others meet at. It has no profile, no
// vault and no local API, and starts without anybody at a keyboard.
//
// The main function is Run, which owns the profile's lock from its first to its last moment. Several may run in one
// process, each on its own profile.
//
// The folder of a profile, all files 0600 and all folders 0700:
//
//	vault.age   the sealed keys (docs/spec/identity.md)
//	vault.key   the key file, only for a profile without a password
//	db/         the database
//	marker      what tells a restored or copied folder from this one (R3); see marker.go
//	port        the port this profile listens on, chosen once
//	lock        held by the running node
//	logout      there after a logout: the next start stays locked
//	log, log.1  what a node in the background has to say
//
// The folder of a bootstrap node has db, port and lock likewise, and:
//
//	bootstrap.key  its keys, unsealed
//	network        which network it serves, and the other bootstrap nodes of that
package daemon
