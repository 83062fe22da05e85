package daemon

import (
	"fmt"
	"os"
	"sync"
)

// maxLog is the size at which a log file gives way to a new one; the one before is kept, so a profile's logs stay below
// twice this.
const maxLog = 2 << 20

// logFile is an io.Writer for a node in the background.
type logFile struct {
	path string

	mu   sync.Mutex // guards all below
	f    *os.File
	size int64
}

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("opening the log: %w", err)
	}
	l.f, l.size = f, info.Size()
	return nil
}

// Write appends one record. A log that cannot be rotated goes on in the file it has.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(b)) > maxLog {
		old := l.f
		if err := os.Rename(l.path, l.path+".1"); err == nil {
			if err := l.open(); err != nil {
				l.f = old
			} else {
				_ = old.Close()
			}
		}
	}
	n, err := l.f.Write(b)
	l.size += int64(n)
	return n, err
}

// Close closes the file.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
