package daemon

import (
	"context"
	"errors"
	"strings"

	"hima/groups"
	"hima/internal/mailbox"
	"hima/internal/messenger"
	"hima/storage"
)

// namedGroups is how many groups with the same trouble are named.
const namedGroups = 8

// groups says what is wrong with groups, one finding for all that have the same trouble, and counts those without.
func (x *examination) groups(ctx context.Context) error {
	list, err := x.u.messenger.Groups(ctx)
	if err != nil {
		return err
	}
	health := map[groups.ID]groups.Health{}
	err = x.u.db.View(func(tx *storage.Tx) error {
		all, err := x.u.groups.Health(tx)
		for _, h := range all {
			health[h.Group] = h
		}
		return err
	})
	if err != nil {
		return err
	}
	x.groupFindings(list, health)
	return nil
}

func (x *examination) groupFindings(list []messenger.Group, health map[groups.ID]groups.Health) {
	type finding struct {
		names []string
		ids   []string
		count int
		err   error // of the first
	}
	found, well := map[string]*finding{}, 0
	for i := range list {
		g := &list[i]
		detail, err := groupTrouble(g, health[g.ID])
		switch {
		case detail != "":
		case g.State == string(groups.StateMember):
			well++
			continue
		default:
			continue // only heard of, or over
		}
		f := found[detail]
		if f == nil {
			f = &finding{err: err}
			found[detail] = f
		}
		if f.count++; f.count <= namedGroups {
			f.names, f.ids = append(f.names, g.Name), append(f.ids, g.ID.String())
		}
	}
	for _, detail := range []string{"no_key", "log_full", "log_failed", "unreached", "joining", "read_only"} {
		f := found[detail]
		if f == nil {
			continue
		}
		names := strings.Join(f.names, ", ")
		if f.count > namedGroups {
			names += ", …"
		}
		v := values{"name": names, "groups": strings.Join(f.ids, " "), "count": number(f.count)}
		if f.err != nil {
			v["error"] = f.err.Error()
		}
		x.say("group", checkWarning, detail, v)
	}
	switch {
	case well > 0:
		x.say("group", checkOK, "work", values{"count": number(well)})
	case len(found) == 0:
		x.say("group", checkOff, "none", nil)
	}
}

// groupTrouble is the code of what is wrong with a group, the worst first; empty: nothing is.
func groupTrouble(g *messenger.Group, h groups.Health) (detail string, why error) {
	switch {
	case g.State == string(groups.StateJoining):
		return "joining", nil
	case g.State != string(groups.StateMember):
		return "", nil
	case g.ReadOnly:
		return "read_only", nil
	case h.Keyless:
		return "no_key", nil
	case errors.Is(h.Log, mailbox.ErrFull), errors.Is(h.Log, mailbox.ErrNoRoom):
		return "log_full", nil
	case h.Log != nil:
		return "log_failed", h.Log
	case h.Unreached && len(g.Mailboxes) == 0: // else the mailbox takes what is said meanwhile
		return "unreached", nil
	}
	return "", nil
}
