package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// farTimes is what the simulation of a group prints, in virtual time.
type farTimes struct {
	Members  int           `json:"members"`
	Pairs    int           `json:"pairs"`  // of a message and a member who was online throughout
	Missed   int           `json:"missed"` // of these within half a minute
	P50      time.Duration `json:"p50"`
	P95      time.Duration `json:"p95"`
	Floor95  time.Duration `json:"floor95"`  // how long light needs to the farthest in three hops
	Returned int           `json:"returned"` // members who were away and held everything in the end
	Links    float64       `json:"links"`    // sessions per member
	Bytes    float64       `json:"bytes"`    // per delivered message, headers of UDP and IP included
	Memory   float64       `json:"memory"`   // bytes per member
	CPU      time.Duration `json:"cpu"`      // per delivered message
}

// quietTimes is what the simulation of many quiet groups prints.
type quietTimes struct {
	Groups, People int
	Conns          int     // the most of any
	Bytes          float64 // a second, both directions, of the busiest
}

// groupFar measures a large group on far links, and many quiet groups. Virtual time exists in tests only.
func groupFar(ctx context.Context, r report) error {
	var f farTimes
	if err := simulate(ctx, "TestGroupFar", "GROUP ", map[string]string{"HIMA_GROUP": "200"}, &f); err != nil {
		return err
	}
	addFar(r, f)
	var q quietTimes
	if err := simulate(ctx, "TestQuietGroups", "QUIET ", map[string]string{"HIMA_GROUP": "100"}, &q); err != nil {
		return err
	}
	label := fmt.Sprintf("a member of %d quiet groups over %d people", q.Groups, q.People)
	r.most(label+": connections", float64(q.Conns), 64, "", "")
	r.most(label+": bytes, both directions", q.Bytes, 1024, "/s", "")
	r.add(row{Name: "load", Value: load()})
	return nil
}

func addFar(r report, f farTimes) {
	label := fmt.Sprintf("%d members, 50 ms one way, a tenth restarting", f.Members)
	r.most(label+": message to online member, p95", f.P95.Seconds()*1e3, 500, "ms", fmt.Sprintf("%.0f ms", f.Floor95.Seconds()*1e3))
	r.add(row{Name: "  p50; pairs; not within half a minute", Value: fmt.Sprintf("%.0f ms; %d; %d", f.P50.Seconds()*1e3, f.Pairs, f.Missed)})
	r.add(row{Name: "  who came back and held all", Value: strconv.Itoa(f.Returned)})
	addCost(r, f)
}

func addCost(r report, f farTimes) {
	r.add(row{Name: fmt.Sprintf("  %d members: sessions each", f.Members), Value: fmt.Sprintf("%.1f", f.Links)})
	r.add(row{Name: fmt.Sprintf("  %d members: bytes per delivered message", f.Members), Value: fmt.Sprintf("%.0f", f.Bytes)})
	r.add(row{Name: fmt.Sprintf("  %d members: memory per member", f.Members), Value: fmt.Sprintf("%.1f MiB", f.Memory/(1<<20))})
	r.add(row{Name: fmt.Sprintf("  %d members: processor per delivered message", f.Members), Value: us(f.CPU)})
}

// groupSizes measures what a member costs in groups of these sizes, nobody restarting.
func groupSizes(ctx context.Context, r report, sizes []int) error {
	for _, n := range sizes {
		var f farTimes
		if err := simulate(ctx, "TestGroupFar", "GROUP ", map[string]string{"HIMA_GROUP": strconv.Itoa(n), "HIMA_GROUP_STILL": "1"}, &f); err != nil {
			return err
		}
		r.add(row{Name: fmt.Sprintf("%d members: p95", n), Value: fmt.Sprintf("%.0f ms", f.P95.Seconds()*1e3), Floor: fmt.Sprintf("%.0f ms", f.Floor95.Seconds()*1e3)})
		addCost(r, f)
	}
	r.add(row{Name: "load", Value: load()})
	return nil
}

// simulate runs a test of this package and reads the line that it prints.
func simulate(ctx context.Context, test, mark string, env map[string]string, into any) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-timeout=1h", "-run=^"+test+"$", "-v", "hima/internal/bench")
	cmd.Env = os.Environ()
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("simulating: %w\n%s", err, out)
	}
	s := bufio.NewScanner(bytes.NewReader(out))
	for s.Scan() {
		if line, ok := bytes.CutPrefix(s.Bytes(), []byte(mark)); ok {
			return json.Unmarshal(line, into)
		}
	}
	return errors.New("the simulation printed nothing")
}
