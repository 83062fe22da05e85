package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// says tells whether somebody's history of a group has these texts.
func (p person) says(group string, texts ...string) func() bool {
	return func() bool {
		have := map[string]bool{}
		for _, m := range p.list("history", group) {
			text, _ := m["text"].(string)
			have[text] = true
		}
		for _, text := range texts {
			if !have[text] {
				return false
			}
		}
		return true
	}
}

// isMember tells whether somebody is in a group.
func (p person) isMember(group string) func() bool {
	return func() bool {
		r := p.try("--json", "group", "info", group)
		return r.code == 0 && strings.Contains(r.stdout, `"state":"member"`)
	}
}

// Three people behind symmetric routers, who can never connect directly, find a public group by its name, are let in, and
// read the same; who is removed reads nothing more; and what is written while nobody else is there comes through the group's
// mailbox. The operator of the only node between them has nothing to read, and no name of the group.
func TestNetlabGroup(t *testing.T) {
	internet(t, "symmetric,symmetric,symmetric")
	b := serve(t, "pub", "192.0.0.130")
	ann := user(t, "annquillfeather", "nat1", b.link)
	ben := user(t, "benmarchbanks", "nat2", b.link)
	cid := user(t, "cidthistlewood", "nat3", b.link)
	for _, p := range []person{ann, ben, cid} {
		p.joined()
	}
	capture := record(t, "pub")
	ann.must("group", "create", "quiet company of readers", "--history", "all")
	ids := ann.list("group", "list")
	require.Len(t, ids, 1)
	group := ids[0]["id"].(string)
	link := ann.one("group", "link", group)["link"].(string)
	for _, p := range []person{ben, cid} {
		p.must("group", "apply", link, "--message", "secret sentence of "+p.name)
		ann.until("the application of "+p.name, func() bool {
			for _, a := range ann.list("group", "applications", group) {
				if a["state"] == "waiting" && a["message"] == "secret sentence of "+p.name {
					ann.must("group", "approve", group, a["account"].(string))
					return true
				}
			}
			return false
		})
		p.until("being let in", p.isMember(group))
	}
	for _, p := range []person{ann, ben, cid} {
		p.must("send", group, "secret sentence by "+p.name)
	}
	for _, p := range []person{ann, ben, cid} {
		p.until("what all three said", p.says(group, "secret sentence by "+ann.name, "secret sentence by "+ben.name, "secret sentence by "+cid.name))
	}

	// Nobody else is there: a mailbox holds it, and the other reads it when the author is gone.
	ann.must("node", "stop")
	cid.must("node", "stop")
	ben.must("send", group, "secret sentence to nobody", "--wait", "sent", "--timeout", "90s")
	ben.must("node", "stop")
	ann.until("what was said while nobody was there", ann.says(group, "secret sentence to nobody"))

	// The removed reads what was said before, and nothing after.
	who := cid.one("whoami")["account"].(string)
	ann.must("group", "remove", group, who)
	ann.must("send", group, "secret sentence without cid")
	cid.until("being removed", func() bool {
		r := cid.try("--json", "group", "info", group)
		return r.code == 0 && strings.Contains(r.stdout, `"state":"removed"`)
	})
	ben.until("what was said after the removal", ben.says(group, "secret sentence without cid"))
	require.False(t, cid.says(group, "secret sentence without cid")())

	var secrets []string
	for _, p := range []person{ann, ben, cid} {
		secrets = append(append(secrets, idsOf(t, p)...), p.name)
		p.must("node", "stop")
	}
	b.stop()
	packets := capture()
	for _, s := range append(secrets, "secret sentence", "quiet company", group) {
		require.NotContains(t, packets, s, "on the wire")
		require.Empty(t, grep(t, b.dir, s), "on the disk of the bootstrap node")
	}
}
