package storage

import "testing"

func TestProcessors(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]int{1: 8, 2: 8, 8: 8, 9: 9, 128: 128} {
		if got := Processors(n); got != want {
			t.Errorf("where the runtime chose %d: %d, want %d", n, got, want)
		}
	}
}
