package daemon

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// figure reads one metric over HTTP.
func (s *station) figure(name string) float64 {
	s.t.Helper()
	code, body := s.get("/metrics")
	require.Equal(s.t, 200, code)
	for line := range strings.Lines(body) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			require.NoError(s.t, err)
			return f
		}
	}
	s.t.Fatalf("no metric %s in:\n%s", name, body)
	return 0
}

func TestMetricsAreServed(t *testing.T) {
	s := newStation(t)
	s.config = func(c *BootstrapConfig) { c.Metrics = "127.0.0.1:0"; c.Network = "home" }
	s.start()
	code, body := s.get("/healthz")
	require.Equal(t, 200, code)
	require.Equal(t, "ok\n", body)
	code, body = s.get("/readyz")
	require.Equal(t, 200, code, body)
	code, body = s.get("/metrics")
	require.Equal(t, 200, code)
	for _, g := range gauges() {
		require.Regexp(t, `(?m)^`+g.name+` `, body)
	}
	require.Contains(t, body, `network="home"`)
	require.Greater(t, s.figure("hima_goroutines"), 1.0)
	require.Greater(t, s.figure("hima_disk_free_bytes"), 0.0)
	code, _ = s.get("/debug/pprof/")
	require.Equal(t, 404, code, "nothing else is served")
}

// TestDashboardFitsTheMetrics: the dashboard in docs shows exactly the metrics that there are.
func TestDashboardFitsTheMetrics(t *testing.T) {
	raw, err := os.ReadFile("../../docs/grafana/hima-bootstrap.json")
	require.NoError(t, err)
	require.True(t, json.Valid(raw))
	shown := map[string]bool{}
	for _, name := range regexp.MustCompile(`\bhima_[a-z_]+`).FindAllString(string(raw), -1) {
		shown[name] = true
	}
	var want, have []string
	for _, g := range gauges() {
		want = append(want, g.name)
		require.Equal(t, g.counter, strings.HasSuffix(g.name, "_total"), "%s: counters and only counters end in _total", g.name)
	}
	want = append(want, infoMetric)
	for name := range shown {
		have = append(have, name)
	}
	slices.Sort(want)
	slices.Sort(have)
	require.Equal(t, want, have)
}
