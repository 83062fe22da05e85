package directory

import (
	"slices"
	"time"
)

// samples are durations of one thing measured again and again.
type samples []time.Duration

// at returns a percentile, p in 0..1.
func (s samples) at(p float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}
