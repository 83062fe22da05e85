package control

import "runtime/debug"

// Release is the version of this source. Client and node compare it on every call.
const Release = "0.1.0"

// VersionHeader carries Release in requests and in responses.
const VersionHeader = "Hima-Version"

// commitLength is how many hexadecimal digits of a commit are shown: git's own choice for a project of this size.
const commitLength = 12

// Commit returns the commit this program was built from, with a "+" if the tree had changes, or "" if it is not known
// (go test, go run).
func Commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+"
			}
		}
	}
	if revision == "" {
		return ""
	}
	return revision[:min(len(revision), commitLength)] + dirty
}
