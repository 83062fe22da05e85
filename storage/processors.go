package storage

// minProcessors is the least that Processors advises.
const minProcessors = 8

// Processors is how many threads of a process that keeps databases should run Go at once (runtime.GOMAXPROCS), where the
// runtime chose n: at least eight. Whoever waits for a sync keeps one of them until the runtime takes notice, between
// twenty microseconds and ten milliseconds later. Of the two on a small machine that is half of all; of eight it is an
// eighth, and which of them compute is left to the kernel. Badger asks its users for the same.
func Processors(n int) int { return max(n, minProcessors) }
