// Package daemon is one running profile: it keeps the profile's folder, opens everything in order, wires the parts to each
// other, runs them in one errgroup and closes them in reverse. It serves register and login while the keys are locked.
//
// It never knows a rule of the domain: who may write to whom, what an entry says, when to try again. It is the one package
// that may import all others.
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
package daemon
