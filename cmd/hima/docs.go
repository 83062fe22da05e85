package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"hima/internal/control"
	"hima/internal/text"
)

// internalCommand holds what only those who build hima need.
func (a *app) internalCommand() *cobra.Command {
	docs := a.command(spec{
		use: "docs FOLDER", id: "internal.docs", min: 1, max: 1, hidden: true,
		run: func(_ context.Context, args []string) error { return a.writeDocs(args[0]) },
	})
	g := a.group("internal", "internal", docs)
	g.Hidden = true
	return g
}

// writeDocs writes cli.md and the man pages into folder. They are always English, and the same bytes for the same
// program, so that a test can say whether the committed ones are current.
func (a *app) writeDocs(folder string) error {
	a.catalogueOnce.Do(func() { a.catalogueText = text.NewCatalogue(text.LangEnglish) })
	a.localise()
	f, err := os.Create(filepath.Join(folder, "cli.md"))
	if err != nil {
		return err
	}
	a.writeMarkdown(f)
	if err := f.Close(); err != nil {
		return err
	}
	man := filepath.Join(folder, "man")
	if err := os.MkdirAll(man, 0o755); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(man, "hima*.1"))
	if err != nil {
		return err
	}
	for _, path := range old { // a command that is gone must not leave its page
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	never := time.Unix(0, 0).UTC() // a date would make the pages differ from day to day
	a.root.DisableAutoGenTag = true
	if err := a.writeCompletions(filepath.Join(folder, "completion")); err != nil {
		return err
	}
	return doc.GenManTree(a.root, &doc.GenManHeader{Title: "HIMA", Section: "1", Source: "hima " + control.Release, Date: &never}, man)
}

// writeCompletions writes the scripts that packages install; they ask the program itself for what fits.
func (a *app) writeCompletions(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(folder, name) }
	return errors.Join(
		a.root.GenBashCompletionFileV2(in("hima.bash"), true),
		a.root.GenZshCompletionFile(in("_hima")),
		a.root.GenFishCompletionFile(in("hima.fish"), true),
		a.root.GenPowerShellCompletionFileWithDesc(in("hima.ps1")),
	)
}

func (a *app) writeMarkdown(w io.Writer) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	p("# The command line\n\n<!-- Written by \"hima internal docs\"; change the catalogues and the commands instead. -->\n\n")
	p("%s\n\n", a.t("docs.intro"))
	p("## %s\n", a.t("docs.flags"))
	flagTable(w, a.root.PersistentFlags())
	p("\n%s\n\n", a.t("docs.environment"))
	p("## %s\n\n| %s | %s |\n|---:|---|\n", a.t("docs.exit_codes"), a.t("docs.code"), a.t("docs.meaning"))
	for _, c := range []int{exitOK, exitFailed, exitUsage, exitNotRunning, exitNotYet, exitNotAllowed, exitInterrupted} {
		p("| %d | %s |\n", c, a.t(fmt.Sprintf("docs.exit.%d", c)))
	}
	p("\n## %s\n\n%s\n\n", a.t("docs.who"), a.t("docs.who_text"))
	p("## %s\n\n%s\n\n| %s | %s |\n|---|---|\n", a.t("docs.json"), a.t("docs.json_text"), a.t("docs.code"), a.t("docs.meaning"))
	for _, c := range control.Codes() {
		p("| `%s` | %s |\n", c, a.t("error."+string(c)))
	}
	p("\n## %s\n", a.t("docs.commands"))
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "no-help" {
			return
		}
		p("\n### %s\n\n%s\n\n", c.CommandPath(), strings.TrimSpace(c.Long))
		if c.Runnable() && !c.HasAvailableSubCommands() || c.CommandPath() == "hima invite" {
			p("```\n%s\n```\n", c.UseLine())
		}
		if len(c.Aliases) > 0 {
			p("\n%s `%s`\n", a.t("help.aliases"), strings.Join(c.Aliases, "`, `"))
		}
		flagTable(w, c.LocalNonPersistentFlags())
		if c.Example != "" {
			p("\n```\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(c.Example, "  "), "\n  ", "\n"))
		}
		for _, child := range c.Commands() {
			if c.Name() != "completion" {
				walk(child)
			}
		}
	}
	for _, c := range a.root.Commands() {
		walk(c)
	}
}

func flagTable(w io.Writer, flags *pflag.FlagSet) {
	head := "\n| | |\n|---|---|\n"
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		label := "--" + f.Name
		if f.Shorthand != "" {
			label = "-" + f.Shorthand + ", " + label
		}
		value, usage := pflag.UnquoteUsage(f)
		if value != "" {
			label += " " + value
		}
		if hasDefault(f) {
			usage += " (" + strings.Trim(f.DefValue, "[]") + ")"
		}
		_, _ = fmt.Fprintf(w, "%s| `%s` | %s |\n", head, label, usage)
		head = ""
	})
}
