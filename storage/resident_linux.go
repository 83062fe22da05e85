package storage

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// madvPageout asks the kernel (5.4 and newer) to reclaim pages. Unlike MADV_DONTNEED it changes no content, so that a
// mapping which Badger replaces between our looking and asking is merely slower once.
const madvPageout = 21

// mappedResident returns how many bytes of mapped files are resident in this process, the program itself included.
func mappedResident() (uint64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("asking for resident memory: %w", err)
	}
	_, rest, ok := bytes.Cut(status, []byte("RssFile:"))
	line, _, _ := bytes.Cut(rest, []byte("kB"))
	kb, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 64)
	if !ok || err != nil {
		return 0, errors.New("asking for resident memory: no RssFile in /proc/self/status")
	}
	return kb << 10, nil
}

// releaseTables gives back the pages of the tables and value logs in dir. What is asked for again is read again.
func releaseTables(dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("releasing tables: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("releasing tables: %w", err)
	}
	prefix := []byte(abs + string(filepath.Separator))
	for line := range bytes.Lines(maps) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		at := bytes.Index(line, prefix)
		if at < 0 || !bytes.HasSuffix(line, []byte(".sst")) && !bytes.HasSuffix(line, []byte(".vlog")) {
			continue
		}
		bounds, _, _ := bytes.Cut(line, []byte(" "))
		from, to, _ := bytes.Cut(bounds, []byte("-"))
		begin, err1 := strconv.ParseUint(string(from), 16, 64)
		end, err2 := strconv.ParseUint(string(to), 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("releasing tables: %w", err)
		}
		_, _, errno := syscall.Syscall(syscall.SYS_MADVISE, uintptr(begin), uintptr(end-begin), madvPageout)
		switch errno {
		case 0, syscall.ENOMEM: // a table that was closed meanwhile
		default:
			return fmt.Errorf("releasing tables: %w", errno)
		}
	}
	return nil
}
