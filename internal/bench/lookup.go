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

// lookupTimes is what the measurement prints, in nanoseconds of virtual time.
type lookupTimes struct {
	Nodes     int           `json:"nodes"`
	Looked    int           `json:"looked"`
	Missed    int           `json:"missed"` // found nothing, of two thirds of the look-ups
	BareP50   time.Duration `json:"bare_p50"`
	BareP95   time.Duration `json:"bare_p95"`
	RecordP50 time.Duration `json:"record_p50"`
	RecordP95 time.Duration `json:"record_p95"`
	NameP50   time.Duration `json:"name_p50"`
	NameP95   time.Duration `json:"name_p95"`
}

// lookup measures how long searching a name and fetching a record take among so many nodes, beside a bare get of the
// table in the same run. Virtual time exists in tests only, so the measurement is one of package directory.
func lookup(ctx context.Context, r report, sizes []int) error {
	for _, n := range sizes {
		t, err := lookupOnce(ctx, n)
		if err != nil {
			return err
		}
		label := fmt.Sprintf("%d nodes, 50 ms one way", n)
		r.most(label+": records not found", float64(t.Missed)/float64(2*t.Looked), 0.01, "of all", "")
		r.ratio(label+": name p50", t.NameP50, t.BareP50, 1.3)
		r.ratio(label+": name p95", t.NameP95, t.BareP95, 1.3)
		r.ratio(label+": record p50", t.RecordP50, t.BareP50, 1.3)
		r.ratio(label+": record p95", t.RecordP95, t.BareP95, 1.3)
	}
	return nil
}

func lookupOnce(ctx context.Context, n int) (lookupTimes, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-timeout=1h", "-run=^TestLookupTimes$", "-v", "hima/internal/directory")
	cmd.Env = append(os.Environ(), "HIMA_LOOKUP="+strconv.Itoa(n))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return lookupTimes{}, fmt.Errorf("measuring look-ups: %w\n%s", err, out)
	}
	s := bufio.NewScanner(bytes.NewReader(out))
	for s.Scan() {
		if line, ok := bytes.CutPrefix(s.Bytes(), []byte("LOOKUP ")); ok {
			var t lookupTimes
			if err := json.Unmarshal(line, &t); err != nil {
				return lookupTimes{}, fmt.Errorf("reading the measurement: %w", err)
			}
			return t, nil
		}
	}
	return lookupTimes{}, errors.New("the measurement printed nothing")
}
