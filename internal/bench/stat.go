package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
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

// report is what one measurement prints.
type report struct {
	json bool
	out  io.Writer
}

// row is one figure. Floor and Target are empty where there is none.
type row struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Floor  string `json:"floor,omitempty"`
	Ratio  string `json:"ratio,omitempty"`
	Target string `json:"target,omitempty"`
	Met    *bool  `json:"met,omitempty"`
}

func (r report) add(w row) {
	if r.json {
		b, err := json.Marshal(w)
		if err == nil {
			fmt.Fprintln(r.out, string(b))
		}
		return
	}
	met := ""
	if w.Met != nil {
		met = "MISSED"
		if *w.Met {
			met = "met"
		}
	}
	line := fmt.Sprintf("%-52s %14s  floor %-14s ratio %-6s target %-12s %s", w.Name, w.Value, w.Floor, w.Ratio, w.Target, met)
	fmt.Fprintln(r.out, strings.TrimRight(line, " "))
}

// ratio adds a figure that is judged by its ratio to a floor.
func (r report) ratio(name string, value, floor time.Duration, target float64) {
	q := float64(value) / float64(floor)
	met := q <= target
	r.add(row{
		Name: name, Value: us(value), Floor: us(floor), Ratio: fmt.Sprintf("%.2f", q),
		Target: fmt.Sprintf("<= %.1f", target), Met: &met,
	})
}

// most adds a figure that may be at most target.
func (r report) most(name string, value, target float64, unit, floor string) {
	met := value <= target
	r.add(row{
		Name: name, Value: fmt.Sprintf("%.4g %s", value, unit), Floor: floor,
		Target: fmt.Sprintf("<= %.4g %s", target, unit), Met: &met,
	})
}

// least adds a figure that must be at least target.
func (r report) least(name string, value, target float64, unit, floor string) {
	met := value >= target
	r.add(row{
		Name: name, Value: fmt.Sprintf("%.6g %s", value, unit), Floor: floor,
		Target: fmt.Sprintf(">= %.6g %s", target, unit), Met: &met,
	})
}

func us(d time.Duration) string { return fmt.Sprintf("%.1f us", float64(d)/1e3) }

// load is the machine's load average, for the reader to judge how quiet it was.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	return strings.Join(strings.Fields(string(b))[:1], " ")
}
