package daemon

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// fileBirth returns what makes a file this file and not another with the same content.
func fileBirth(path string) (inode uint64, birth int64, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, nil
	}
	return st.Ino, st.Birthtimespec.Nano(), nil
}

// machineID is the hardware's UUID as the kernel tells it.
func machineID() []byte {
	s, err := unix.Sysctl("kern.uuid")
	if err != nil {
		return nil
	}
	return []byte(s)
}
