//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// detach puts the node into a session of its own: it must outlive the terminal that started it.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
