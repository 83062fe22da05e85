package mailbox

import (
	"context"
	"errors"
)

// Server keeps items for others. Make it with NewServer, let Run work.
type Server struct {
	cfg ServerConfig
}

// NewServer checks the configuration. It starts nothing.
func NewServer(c ServerConfig) (*Server, error) {
	if c.DB == nil || c.Node == nil || c.Key.IsZero() {
		return nil, errors.New("mailbox: database, node and key are required")
	}
	return &Server{cfg: c}, nil
}

// Run serves until ctx ends and all streams returned. It is called once.
func (s *Server) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Stats counts what is held and was done.
func (s *Server) Stats() ServerStats { return ServerStats{} }

// Usage says what the inboxes under a grant hold.
func (s *Server) Usage(grant []byte) (bytes uint64, items int) { return 0, 0 }
