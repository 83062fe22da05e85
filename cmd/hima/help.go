package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/charmbracelet/x/ansi"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// writeUsage is how a command is used, in the user's language. cobra's own would count Chinese characters as one cell.
func (a *app) writeUsage(w io.Writer, c *cobra.Command) error {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	p("%s\n", a.t("help.usage"))
	if c.Runnable() && (!c.HasAvailableSubCommands() || !c.HasParent() || c.DisableFlagsInUseLine) {
		p("  %s\n", c.UseLine())
	}
	if c.HasAvailableSubCommands() {
		p("  %s %s\n", c.CommandPath(), a.t("help.command_placeholder"))
	}
	if len(c.Aliases) > 0 {
		p("\n%s %s\n", a.t("help.aliases"), strings.Join(c.Aliases, ", "))
	}
	if c.HasExample() {
		p("\n%s\n%s\n", a.t("help.examples"), c.Example)
	}
	if c.HasAvailableSubCommands() {
		var rows [][2]string
		for _, child := range c.Commands() {
			if child.IsAvailableCommand() {
				rows = append(rows, [2]string{child.Name(), child.Short})
			}
		}
		p("\n%s\n%s", a.t("help.commands"), aligned(rows))
	}
	if rows := flagRows(c.LocalFlags()); len(rows) > 0 {
		p("\n%s\n%s", a.t("help.flags"), aligned(rows))
	}
	if rows := flagRows(c.InheritedFlags()); len(rows) > 0 {
		p("\n%s\n%s", a.t("help.global_flags"), aligned(rows))
	}
	if c.HasAvailableSubCommands() {
		p("\n%s\n", a.t("help.more"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// flagRows are the flags that are shown, with what they mean.
func flagRows(flags *pflag.FlagSet) [][2]string {
	var rows [][2]string
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		label := "    --" + f.Name
		if f.Shorthand != "" {
			label = "-" + f.Shorthand + ", --" + f.Name
		}
		value, usage := pflag.UnquoteUsage(f)
		if value != "" {
			label += " " + value
		}
		if hasDefault(f) {
			usage += " (" + strings.Trim(f.DefValue, "[]") + ")"
		}
		rows = append(rows, [2]string{label, usage})
	})
	return rows
}

// hasDefault reports whether a flag has a default worth telling.
func hasDefault(f *pflag.Flag) bool {
	switch f.DefValue {
	case "", "false", "[]", "0", "0s":
		return false
	}
	return true
}

// aligned puts the second parts below each other, counted in cells.
func aligned(rows [][2]string) string {
	widest := 0
	for _, r := range rows {
		widest = max(widest, ansi.StringWidth(r[0]))
	}
	var b strings.Builder
	for _, r := range rows {
		pad := strings.Repeat(" ", widest-ansi.StringWidth(r[0])+columnGap)
		fmt.Fprintf(&b, "  %s%s%s\n", r[0], pad, r[1])
	}
	return b.String()
}
