package daemon

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"hima/identity"
	"hima/internal/control"
)

// bootstrapKeyFile holds what a bootstrap node is: with it the network goes on, and its names are confirmed, on another
// machine; without it they are lost. It is not sealed: a machine that starts alone has nobody to type a password.
const bootstrapKeyFile = "bootstrap.key"

const bootstrapKeyHead = `# Key of a hima bootstrap node. Whoever has it is that node. Keep a copy where only you can read it:
# with it a lost machine can be replaced, and without it the network cannot confirm names any more.
`

// nodeKeys are the secrets of a bootstrap node.
type nodeKeys struct {
	device   identity.DeviceKey
	database identity.Secret
}

// bootstrapKeys reads the key file, or makes it.
func bootstrapKeys(dir string) (nodeKeys, error) {
	path := filepath.Join(dir, bootstrapKeyFile)
	b, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, stateFile)); err == nil {
			return nodeKeys{}, damagedKey() // the network is there and its key is gone: none is made in its place
		}
		k := nodeKeys{device: identity.GenerateDeviceKey(), database: identity.NewSecret(identity.GenerateDeviceKey().Seed())}
		seed := k.device.Seed()
		text := bootstrapKeyHead + "device " + hex.EncodeToString(seed[:]) + "\ndatabase " + hex.EncodeToString(k.database.Bytes()) + "\n"
		if err := writeFileAtomic(path, []byte(text)); err != nil {
			return nodeKeys{}, fmt.Errorf("writing the key: %w", err)
		}
		return k, nil
	}
	if err != nil {
		return nodeKeys{}, fmt.Errorf("reading the key: %w", err)
	}
	return parseBootstrapKeys(string(b))
}

func parseBootstrapKeys(text string) (nodeKeys, error) {
	found := map[string][32]byte{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		b, err := hex.DecodeString(strings.TrimSpace(value))
		if err != nil || len(b) != 32 {
			return nodeKeys{}, damagedKey() // the value is a secret and is not shown
		}
		found[name] = [32]byte(b)
	}
	device, ok := found["device"]
	database, ok2 := found["database"]
	if !ok || !ok2 {
		return nodeKeys{}, damagedKey()
	}
	return nodeKeys{device: identity.DeviceKeyFromSeed(device), database: identity.NewSecret(database)}, nil
}

func damagedKey() error {
	return &control.Error{
		Code: control.Damaged, Message: "the file " + bootstrapKeyFile + " does not hold the keys of this bootstrap node",
		Hint: "put the copy back that you kept; with a new key it is a new network, in a new folder",
	}
}
