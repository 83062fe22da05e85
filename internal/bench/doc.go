// Bench measures hima beside the floor of the same run: what the disk, the database and the network cost on this
// machine, at this minute, without hima. A figure without its floor says more about the machine than about the program.
//
//	go run ./internal/bench latency    send to acknowledged, two processes, both durable
//	go run ./internal/bench pipeline   messages a second with many under way, both durable, all checked
//	go run ./internal/bench catchup    missed messages a second
//	go run ./internal/bench million    a profile of a million messages: start, newest screen, memory, idle CPU
//	go run ./internal/bench command    `hima send` as a whole command
//	go run ./internal/bench lookup     finding names and records among 100 and 300 nodes in virtual time; -n 1000 by hand
//	go run ./internal/bench mailbox    a node that keeps mail: deposits, fetches, disk and memory with 100,000 items
//	go run ./internal/bench group      a message until all of fifty members hold it durably, and its bytes; Linux, as root
//	go run ./internal/bench grouprate  messages a second into a group of ten
//	go run ./internal/bench groupback  a member back after 20,000 messages
//	go run ./internal/bench groupfar   200 members 50 ms apart, a tenth of them restarting; a member of 100 quiet groups; virtual time
//	go run ./internal/bench groupsize  what a member costs in groups of up to 1,000; virtual time; -n for one size
//	go run ./internal/bench roster     folding a roster of 1,000 members and 5,000 changes
//	go run ./internal/bench traffic    bytes a second of two idle connected nodes; Linux, as root
//	go run ./internal/bench joined     bytes an hour of an idle node that joined a network behind NAT; Linux, as root
//
// With -json it prints one object a line. The folder given by -dir must lie on the disk whose durability is meant; the
// default is the working directory's disk.
//
// latency, pipeline and catchup put the parts together as the daemon does (see stack), for they look inside: an
// acknowledgement is timed where it arrives. The others use
// the real binary from outside.
//
// The package is a program and nobody imports it. docs/performance.md holds what it printed.
package main
