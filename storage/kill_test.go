package storage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// punchDir tells a copy of the test binary to be the process whose disk fails.
const punchDir = "HIMA_STORAGE_PUNCH_DIR"

// killDir tells a copy of the test binary to be the process that gets killed.
const killDir = "HIMA_STORAGE_KILL_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(killDir); dir != "" {
		writeForEver(dir)
	}
	if dir := os.Getenv(punchDir); dir != "" {
		os.Exit(writeUnsynced(dir))
	}
	os.Exit(m.Run())
}

// writeForEver counts up in several keys at once and prints each number once it is durable. Every other writer's values
// go to the value log.
func writeForEver(dir string) {
	db, err := Open(Config{Dir: dir, Key: testKey()})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			key := fmt.Appendf(nil, "count/%d", w)
			for {
				var n uint64
				err := db.Update(context.Background(), func(tx *Tx) error {
					if v, err := tx.Get(key); err == nil {
						n = binary.BigEndian.Uint64(v)
					}
					n++
					if err := tx.Set(fmt.Appendf(nil, "log/%d/%d", w, n), killValue(w, n)); err != nil {
						return err
					}
					return tx.Set(key, binary.BigEndian.AppendUint64(nil, n))
				})
				if err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(w, n)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// killValue is what a writer writes the n-th time.
func killValue(writer int, n uint64) []byte {
	size := 200
	if writer%2 == 1 {
		size = 2 * valueThreshold
	}
	return bytes.Repeat(binary.BigEndian.AppendUint64(nil, n), size/8)
}

func TestKillLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	acked := map[int]uint64{}
	for round := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killDir+"="+dir)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			w, count, ok := strings.Cut(lines.Text(), " ")
			writer, err := strconv.Atoi(w)
			require.True(t, ok && err == nil, lines.Text())
			acked[writer], err = strconv.ParseUint(count, 10, 64)
			require.NoError(t, err)
			if n == 500+700*round { // well within a run, at another place each time
				require.NoError(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait()
		db, err := Open(Config{Dir: dir, Key: testKey()})
		require.NoError(t, err)
		require.NoError(t, db.View(func(tx *Tx) error {
			for w, want := range acked {
				v, err := tx.Get(fmt.Appendf(nil, "count/%d", w))
				require.NoError(t, err)
				have := binary.BigEndian.Uint64(v)
				require.GreaterOrEqual(t, have, want)
				// A transaction is there as a whole or not at all.
				for n := uint64(1); n <= have; n++ {
					v, err := tx.Get(fmt.Appendf(nil, "log/%d/%d", w, n))
					require.NoError(t, err)
					require.Equal(t, killValue(w, n), v)
				}
				ok, err := tx.Has(fmt.Appendf(nil, "log/%d/%d", w, have+1))
				require.True(t, !ok && err == nil)
			}
			return nil
		}))
		require.NoError(t, db.Close())
	}
}
