package storage

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
	return advise(dir, madvPageout, ".sst", ".vlog")
}

// readScattered tells the kernel that nothing beside what is asked for in the value logs in dir will be wanted. A screen
// asks for a value here and there; with each of them the kernel would read what follows it, on some machines megabytes.
// Tables are left alone: compaction reads them from end to end.
func readScattered(dir string) error {
	return advise(dir, syscall.MADV_RANDOM, ".vlog")
}

// advise gives the kernel advice on all mapped files in dir with these endings.
func advise(dir string, advice uintptr, endings ...string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("giving advice on mapped files: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("giving advice on mapped files: %w", err)
	}
	prefix := []byte(abs + string(filepath.Separator))
	for line := range bytes.Lines(maps) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		at := bytes.Index(line, prefix)
		if at < 0 || !slices.ContainsFunc(endings, func(e string) bool { return bytes.HasSuffix(line, []byte(e)) }) {
			continue
		}
		bounds, _, _ := bytes.Cut(line, []byte(" "))
		from, to, _ := bytes.Cut(bounds, []byte("-"))
		begin, err1 := strconv.ParseUint(string(from), 16, 64)
		end, err2 := strconv.ParseUint(string(to), 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("giving advice on mapped files: %w", err)
		}
		_, _, errno := syscall.Syscall(syscall.SYS_MADVISE, uintptr(begin), uintptr(end-begin), advice)
		switch errno {
		case 0, syscall.ENOMEM: // a file that was closed meanwhile
		default:
			return fmt.Errorf("giving advice on mapped files: %w", errno)
		}
	}
	return nil
}
