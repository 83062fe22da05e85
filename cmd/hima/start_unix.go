//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// privateFiles makes every file of this process, also those that the database makes, readable by its owner only.
func privateFiles() { syscall.Umask(0o077) }

// maxInherited is the highest file descriptor that whoever called us may have left open for us.
const maxInherited = 1024

// detach puts the node into a session of its own: it must outlive the terminal that started it. Descriptors that we
// inherited ourselves (a shell's "3>lock", the terminal of a test) must not live on in it, or whoever waits for their
// end waits for ever.
func detach(cmd *exec.Cmd) {
	for fd := 3; fd < maxInherited; fd++ {
		syscall.CloseOnExec(fd)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
}
