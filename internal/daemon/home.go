package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/adrg/xdg"

	"hima/identity"
)

var (
	// ErrNoProfile is returned when nobody is registered under a name, or nobody at all.
	ErrNoProfile = errors.New("no such profile")
	// ErrManyProfiles is returned by DefaultProfile when there are several and none was used last.
	ErrManyProfiles = errors.New("several profiles and none chosen")
	// ErrBadProfile is returned for a name that cannot be the name of a folder.
	ErrBadProfile = errors.New("not a profile name")
)

const (
	profilesFolder = "profiles"
	lastFile       = "last"
	configFile     = "config.toml"
	vaultFile      = "vault.age"
	keyFile        = "vault.key"
	databaseFolder = "db"
	markerFile     = "marker"
	portFile       = "port"
	lockFile       = "lock"
	logoutFile     = "logout"
	logFileName    = "log"
	socketFile     = "socket"

	// maxSocketPath leaves room for the shortest limit among the systems we run on (104 bytes with the end mark).
	maxSocketPath = 100
)

// Home returns the parent of all profiles: the flag if it is not empty, else the user's data folder.
func Home(flag string) (string, error) {
	if flag == "" {
		return filepath.Join(xdg.DataHome, "hima"), nil
	}
	abs, err := filepath.Abs(flag)
	if err != nil {
		return "", fmt.Errorf("finding the home folder: %w", err)
	}
	return abs, nil
}

// ConfigPath returns where the settings of all profiles of a home stand: in the home itself, or in the user's
// configuration folder for the default home.
func ConfigPath(home string) string {
	if home == filepath.Join(xdg.DataHome, "hima") {
		return filepath.Join(xdg.ConfigHome, "hima", configFile)
	}
	return filepath.Join(home, configFile)
}

// profileDir returns the folder of a profile. The name is a canonical username; what could leave the folder is refused
// here all the same, since it may come from an environment variable.
func profileDir(home, profile string) (string, error) {
	if profile == "" || profile[0] == '.' || len(profile) > identity.MaxUsernameBytes || strings.ContainsAny(profile, "/\\:\x00") {
		return "", fmt.Errorf("%q: %w", profile, ErrBadProfile)
	}
	return filepath.Join(home, profilesFolder, profile), nil
}

// ProfileInfo is what can be told of a profile without opening it.
type ProfileInfo struct {
	Name        string
	HasPassword bool
	LastLogin   time.Time // zero: not the one last logged in
}

// Profiles lists the profiles of a home that have a vault, sorted by name.
func Profiles(home string) ([]ProfileInfo, error) {
	entries, err := os.ReadDir(filepath.Join(home, profilesFolder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing profiles: %w", err)
	}
	last, when := lastProfile(home)
	var out []ProfileInfo
	for _, e := range entries {
		dir := filepath.Join(home, profilesFolder, e.Name())
		vault, err := readSmall(filepath.Join(dir, vaultFile))
		if err != nil {
			continue
		}
		p := ProfileInfo{Name: e.Name(), HasPassword: identity.VaultNeedsPassword(vault)}
		if e.Name() == last {
			p.LastLogin = when
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b ProfileInfo) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// DefaultProfile returns the profile last logged in, if it is still there, else the only one. It returns ErrNoProfile
// or ErrManyProfiles.
func DefaultProfile(home string) (string, error) {
	if last, _ := lastProfile(home); last != "" {
		if dir, err := profileDir(home, last); err == nil {
			if _, err := os.Stat(filepath.Join(dir, vaultFile)); err == nil {
				return last, nil
			}
		}
	}
	all, err := Profiles(home)
	switch {
	case err != nil:
		return "", err
	case len(all) == 0:
		return "", ErrNoProfile
	case len(all) > 1:
		return "", ErrManyProfiles
	}
	return all[0].Name, nil
}

func lastProfile(home string) (name string, when time.Time) {
	path := filepath.Join(home, lastFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return "", time.Time{}
	}
	if info, err := os.Stat(path); err == nil {
		when = info.ModTime()
	}
	return strings.TrimSpace(string(b)), when
}

// rememberProfile makes a profile the default one of its home.
func rememberProfile(home, profile string) error {
	return writeFileAtomic(filepath.Join(home, lastFile), []byte(profile+"\n"))
}

// LogPath returns where a node in the background writes its log.
func LogPath(home, profile string) (string, error) {
	dir, err := profileDir(home, profile)
	return filepath.Join(dir, logFileName), err
}

// SocketPath returns the socket of a profile's node: in the profile's folder, or, where that path is too long for a
// socket, in the user's runtime folder under a name made from the path.
func SocketPath(home, profile string) (string, error) {
	dir, err := profileDir(home, profile)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, socketFile)
	if len(path) <= maxSocketPath {
		return path, nil
	}
	sum := sha256.Sum256([]byte(path))
	name := filepath.Join("hima", hex.EncodeToString(sum[:8])+".sock")
	for _, parent := range []string{os.Getenv("XDG_RUNTIME_DIR"), filepath.Join(os.TempDir(), fmt.Sprintf("hima-%d", os.Getuid())), fmt.Sprintf("/tmp/hima-%d", os.Getuid())} {
		if parent != "" && len(parent)+1+len(name) <= maxSocketPath {
			return filepath.Join(parent, name), nil
		}
	}
	return "", fmt.Errorf("%s: no room for a socket: choose a home with a shorter path", dir)
}
