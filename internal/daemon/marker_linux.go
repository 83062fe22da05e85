package daemon

import (
	"bytes"
	"os"

	"golang.org/x/sys/unix"
)

// fileBirth returns what makes a file this file and not another with the same content. The device number is left out:
// it changes when disks are found in another order.
func fileBirth(path string) (inode uint64, birth int64, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		birth = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return st.Ino, birth, nil
}

// machineID is what systemd and D-Bus keep; a machine without it is told apart by inodes alone.
func machineID() []byte {
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return nil
	}
	return bytes.TrimSpace(b)
}
