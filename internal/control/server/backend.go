package server

import (
	"context"

	"hima/internal/control/pb"
	"hima/internal/messenger"
)

// Backend is what the server needs from the daemon: the life of the node, and the messenger while it is unlocked.
type Backend interface {
	// Status answers in every state, locked and empty too.
	Status(ctx context.Context) (*pb.StatusResponse, error)
	// Register creates the vault of an empty profile and unlocks it.
	Register(ctx context.Context, in *pb.RegisterRequest) (*pb.RegisterResponse, error)
	// Login unlocks. On an unlocked node it checks the password and changes nothing.
	Login(ctx context.Context, in *pb.LoginRequest) (*pb.LoginResponse, error)
	// Stop ends the node soon after it returned; with logout it stays locked at its next start.
	Stop(ctx context.Context, logout bool) error
	// ChangePassword rewrites the vault.
	ChangePassword(ctx context.Context, in *pb.ChangePasswordRequest) error
	// HasPassword says whether the vault is under a password.
	HasPassword() bool
	// Messenger returns the application, or control.Locked, control.NoProfile or control.Unavailable.
	Messenger() (*messenger.Messenger, error)
	// Network returns what concerns networks and mailboxes, or the errors of Messenger.
	Network() (Network, error)
}
