package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"reflect"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/dustin/go-humanize"

	"hima/internal/text"
)

// ErrBadConfig is returned for a configuration file that does not parse, has an unknown key, or a value out of bounds.
var ErrBadConfig = errors.New("the configuration is wrong")

// maxConfig bounds the configuration file.
const maxConfig = 64 << 10

// Settings are the keys of config.toml, which flags and environment override. A zero field means the default.
type Settings struct {
	// Listen are multiaddrs to listen on; empty: all interfaces, TCP and QUIC, on the profile's own port.
	Listen []string `toml:"listen"`
	// Port replaces the profile's own port; 0: the one the profile chose at its first start.
	Port int `toml:"port"`
	// Announce are multiaddrs to tell others besides those found, for a forwarded port.
	Announce []string `toml:"announce"`
	// MDNS looks for people on the LAN; nil: yes.
	MDNS *bool `toml:"mdns"`
	// LogLevel is debug, info, warn or error; empty: info.
	LogLevel string `toml:"log-level"`
	// MemoryLimit is a size for the Go heap, as 64MiB; empty: defaultMemory.
	MemoryLimit string `toml:"memory-limit"`
	// Lang is the language of what the command line prints; empty: from the environment.
	Lang string `toml:"lang"`
}

// LoadSettings reads the configuration of a home. A file that is not there is no error.
func LoadSettings(home string) (Settings, error) {
	path := ConfigPath(home)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Settings{}, nil
	}
	if err != nil {
		return Settings{}, fmt.Errorf("reading %s: %w", path, err)
	}
	if info.Size() > maxConfig {
		return Settings{}, fmt.Errorf("%s has %d bytes, at most %d are read: %w", path, info.Size(), maxConfig, ErrBadConfig)
	}
	var s Settings
	meta, err := toml.DecodeFile(path, &s)
	if err != nil {
		return Settings{}, fmt.Errorf("%s: %w: %w", path, ErrBadConfig, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		key := unknown[0].String()
		if near := text.Nearest(key, configKeys()); near != "" {
			return Settings{}, fmt.Errorf("%s: unknown key %q, did you mean %q? %w", path, key, near, ErrBadConfig)
		}
		return Settings{}, fmt.Errorf("%s: unknown key %q, known are %s: %w", path, key, strings.Join(configKeys(), ", "), ErrBadConfig)
	}
	if err := s.Check(); err != nil {
		return Settings{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Check refuses values that cannot work, with ErrBadConfig. Addresses are checked when they are listened on.
func (s Settings) Check() error {
	if s.Port < 0 || s.Port > 65535 {
		return fmt.Errorf("port %d is not between 1 and 65535: %w", s.Port, ErrBadConfig)
	}
	if _, err := s.level(); err != nil {
		return err
	}
	_, err := s.memory()
	return err
}

// level is the log level, info unless said otherwise.
func (s Settings) level() (slog.Level, error) {
	var l slog.Level
	if s.LogLevel == "" {
		return slog.LevelInfo, nil
	}
	if err := l.UnmarshalText([]byte(s.LogLevel)); err != nil {
		return l, fmt.Errorf("log-level %q is not debug, info, warn or error: %w", s.LogLevel, ErrBadConfig)
	}
	return l, nil
}

const (
	// defaultMemory is the soft limit of the Go heap. A compaction holds 80 MB for seconds, and below that the collector would run
	// without end; the collector gives it back when nothing happens.
	defaultMemory = 96 << 20
	// leastMemory is what a node needs to work at all.
	leastMemory = 24 << 20
)

// memory is the soft limit of the Go heap in bytes.
func (s Settings) memory() (int64, error) {
	if s.MemoryLimit == "" {
		return defaultMemory, nil
	}
	n, err := humanize.ParseBytes(s.MemoryLimit)
	if err != nil || n < leastMemory || n > 1<<40 {
		return 0, fmt.Errorf("memory-limit %q is not a size of at least %s: %w", s.MemoryLimit, humanize.IBytes(leastMemory), ErrBadConfig)
	}
	return int64(n), nil
}

// multicast says whether the LAN is looked at.
func (s Settings) multicast() bool { return s.MDNS == nil || *s.MDNS }

func configKeys() []string {
	var out []string
	for f := range reflect.TypeFor[Settings]().Fields() {
		out = append(out, f.Tag.Get("toml"))
	}
	return out
}
