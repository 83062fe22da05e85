//go:build !linux

package storage

import "os"

// syncData makes durable what was written into a file whose length and place on the disk stay the same.
func syncData(f *os.File) error { return f.Sync() }
