package main

import (
	"os/exec"
	"syscall"
)

// privateFiles does nothing: files in a user's own folders are theirs alone already.
func privateFiles() {}

// detachedProcess is DETACHED_PROCESS: no console, so that closing one does not end the node.
const detachedProcess = 0x00000008

func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP | detachedProcess}
}
