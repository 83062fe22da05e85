package storage

import (
	"os"
	"syscall"
)

// syncData makes durable what was written into a file whose length and place on the disk stay the same. Of the rest, which
// is when it was written last, the system may keep to itself: otherwise each sync writes the file's inode beside its data.
func syncData(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var synced error
	err = conn.Control(func(fd uintptr) {
		for {
			if synced = syscall.Fdatasync(int(fd)); synced != syscall.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("fdatasync", synced)
}
