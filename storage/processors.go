package storage

import (
	"os"
	"runtime"
)

// minProcessors is the least that RaiseProcessors leaves.
const minProcessors = 8

// RaiseProcessors lets at least eight threads of this process run Go at once, unless the environment variable GOMAXPROCS says how
// many, and returns how many it were before. It is for processes that keep databases and are their own: whoever waits for a sync
// keeps one of them until the runtime takes notice, between twenty microseconds and ten milliseconds later. Of the two on a small
// machine that is half of all; of eight it is an eighth, and which of them compute is left to the kernel. Badger asks its users for
// the same.
func RaiseProcessors() (before int) {
	before = runtime.GOMAXPROCS(0)
	// Setting it, be it to the same, ends that the runtime follows what the system allows the process.
	if before < minProcessors && os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(minProcessors)
	}
	return before
}
