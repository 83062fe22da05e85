package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLoadSettings(t *testing.T) {
	home := t.TempDir()
	s, err := LoadSettings(home)
	require.NoError(t, err)
	require.Equal(t, Settings{}, s)
	require.True(t, s.multicast())

	write := func(body string) {
		require.NoError(t, os.WriteFile(filepath.Join(home, configFile), []byte(body), 0o600))
	}
	write("listen = [\"/ip4/127.0.0.1/tcp/0\"]\nport = 4001\nmdns = false\nlog-level = \"debug\"\nmemory-limit = \"128MiB\"\nlang = \"zh-CN\"\n")
	s, err = LoadSettings(home)
	require.NoError(t, err)
	require.Equal(t, 4001, s.Port)
	require.False(t, s.multicast())
	level, err := s.level()
	require.NoError(t, err)
	require.Equal(t, slog.LevelDebug, level)
	memory, err := s.memory()
	require.NoError(t, err)
	require.EqualValues(t, 128<<20, memory)

	for body, says := range map[string]string{
		"lisen = []":              `did you mean "listen"`,
		"Prot = 1":                `did you mean "port"`,
		"password = \"x\"":        "known are listen, port",
		"port = 70000":            "not between 1 and 65535",
		"port = \"x\"":            "config.toml",
		"log-level = \"loud\"":    "debug, info, warn or error",
		"memory-limit = \"3MiB\"": "at least 24 MiB",
		"memory-limit = \"lots\"": "at least 24 MiB",
		"[listen]\nx = 1":         "config.toml",
		"this is not a toml file": "config.toml",
	} {
		write(body)
		_, err := LoadSettings(home)
		require.ErrorIs(t, err, ErrBadConfig, body)
		require.ErrorContains(t, err, says, body)
	}
}
