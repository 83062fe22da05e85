package daemon

import (
	"time"

	"hima/internal/control/server"
	"hima/internal/messenger"
)

// CheckGroupLink refuses a group link that is damaged or has run out, as a node would, before there is a node or an account.
func CheckGroupLink(link string) error {
	if err := messenger.CheckGroupLink(link, time.Now()); err != nil {
		return server.Translate(err)
	}
	return nil
}
