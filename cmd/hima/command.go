package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/text"
)

// spec describes one command. Its words are the catalogue texts cmd.<id>.short and, if there is one, cmd.<id>.long; they
// are put in only when somebody reads them (localise), because loading a catalogue costs more than most commands.
type spec struct {
	use     string
	id      string
	aliases []string
	example string // command lines, the same in every language
	min     int    // arguments
	max     int    // -1: any number
	who     bool   // the first argument is a person: completed from the contacts
	hidden  bool
	run     func(ctx context.Context, args []string) error
}

func (a *app) command(s spec) *cobra.Command {
	c := &cobra.Command{
		Use:     s.use,
		Aliases: s.aliases,
		Short:   "cmd." + s.id + ".short",
		Long:    "cmd." + s.id + ".long",
		Example: s.example,
		Hidden:  s.hidden,

		DisableFlagsInUseLine: true, // the flags that matter stand in use
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < s.min {
				return usage("usage.missing", "Usage", c.UseLine()).withHint("hint.help")
			}
			if s.max >= 0 && len(args) > s.max {
				return usage("usage.extra", "Argument", text.OneLine(args[s.max], 60), "Usage", c.UseLine()).withHint("hint.help")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return s.run(c.Context(), args) },
	}
	c.ValidArgsFunction = cobra.NoFileCompletions
	if s.who {
		c.ValidArgsFunction = a.completeWho
	}
	return c
}

// group is a command that only holds others.
func (a *app) group(use, id string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: "cmd." + id + ".short",
		Long:  "cmd." + id + ".long",
		RunE:  a.onlyHolds,
	}
	c.AddCommand(children...)
	return c
}

// onlyHolds is what a command does that only holds others: it says which ones there are.
func (a *app) onlyHolds(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("usage.unknown_command", "Command", text.OneLine(args[0], 60), "Parent", c.CommandPath()).withHint("hint.help")
	}
	a.localise()
	c.SetOut(a.errOut)
	if err := c.Help(); err != nil {
		return err
	}
	return &silent{exitUsage}
}

// rootCommand builds the tree of commands.
func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "hima",
		Short:         "cmd.hima.short",
		Long:          "cmd.hima.long",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(c *cobra.Command, _ []string) error { return a.home(c.Context()) },
	}
	f := root.PersistentFlags()
	f.StringVar(&a.flags.home, "home", "", "flag.home")
	f.StringVarP(&a.flags.profile, "profile", "p", "", "flag.profile")
	f.StringVar(&a.flags.lang, "lang", "", "flag.lang")
	f.BoolVar(&a.flags.json, "json", false, "flag.json")
	f.BoolVarP(&a.flags.quiet, "quiet", "q", false, "flag.quiet")
	f.BoolVar(&a.flags.noStart, "no-start", false, "flag.no-start")
	envErr := a.flagsFromEnv(f) // before parsing: a wrong flag must be reported in the shape that HIMA_JSON asks for
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if envErr != nil {
			return envErr
		}
		if lang := a.flags.lang; lang != "" && !text.Speaks(lang) {
			a.flags.lang = ""
			return usage("usage.lang", "Lang", text.OneLine(lang, 20))
		}
		return a.flagsFromEnv(c.Flags())
	}
	root.SetFlagErrorFunc(flagFailure)
	help := root.HelpFunc()
	root.SetHelpFunc(func(c *cobra.Command, args []string) {
		a.localise()
		help(c, args)
	})
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
	root.AddCommand(a.accountCommands()...)
	root.AddCommand(a.peopleCommands()...)
	root.AddCommand(a.talkCommands()...)
	root.AddCommand(a.networkCommand(), a.mailboxCommand(), a.doctorCommand(), a.bootstrapCommand())
	root.AddCommand(a.nodeCommand(), a.demoCommand(), a.versionCommand(), a.helpCommand(), a.internalCommand())
	root.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		f := usage("usage.unknown_command", "Command", text.OneLine(args[0], 60), "Parent", c.CommandPath()).withHint("hint.help")
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			return usage("usage.unknown_command_suggestion", "Command", text.OneLine(args[0], 60), "Parent", c.CommandPath(),
				"Suggestion", near[0])
		}
		return f
	}
	root.SuggestionsMinimumDistance = 2
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil && c != root {
		c.Args, c.RunE = nil, a.onlyHolds
	}
	return root
}

func (a *app) accountCommands() []*cobra.Command {
	return []*cobra.Command{
		a.registerCommand(), a.loginCommand(), a.logoutCommand(), a.passwordCommand(), a.whoamiCommand(), a.profileCommand(),
		a.settingsCommand(),
	}
}

func (a *app) peopleCommands() []*cobra.Command {
	return []*cobra.Command{a.inviteCommand(), a.nearbyCommand(), a.searchCommand(), a.contactCommand(), a.groupCommand()}
}

func (a *app) talkCommands() []*cobra.Command {
	return []*cobra.Command{
		a.sendCommand(), a.chatCommand(), a.conversationsCommand(), a.historyCommand(), a.markReadCommand(), a.watchCommand(),
		a.cancelCommand(), a.resendCommand(), a.whyCommand(),
	}
}

func (a *app) helpCommand() *cobra.Command {
	return a.command(spec{use: "help [COMMAND…]", id: "help", max: -1, run: func(_ context.Context, args []string) error {
		c, rest, err := a.root.Find(args)
		if err != nil || c == nil || len(rest) > 0 {
			return usage("usage.unknown_command", "Command", text.OneLine(strings.Join(args, " "), 60), "Parent", "hima").
				withHint("hint.help")
		}
		c.InitDefaultHelpFlag()
		return c.Help()
	}})
}

// flagsFromEnv sets every flag that the command line left alone from HIMA_<FLAG>.
func (a *app) flagsFromEnv(flags *pflag.FlagSet) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "help" || err != nil {
			return
		}
		key := envName(f.Name)
		v := a.env(key)
		if v == "" {
			return
		}
		if flags.Set(f.Name, v) != nil {
			err = usage("usage.env", "Variable", key, "Value", text.OneLine(v, 60))
		}
	})
	return err
}

func envName(flag string) string {
	return "HIMA_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// localise puts the words of the user's language into the whole tree. Texts that are no catalogue IDs stay.
func (a *app) localise() {
	a.root.SetUsageFunc(func(c *cobra.Command) error { return a.writeUsage(c.OutOrStderr(), c) })
	a.localiseCommand(a.root)
}

func (a *app) localiseCommand(c *cobra.Command) {
	put := func(s *string) {
		if strings.HasPrefix(*s, "cmd.") || strings.HasPrefix(*s, "flag.") {
			*s = a.tOptional(*s)
		}
	}
	put(&c.Short)
	put(&c.Long)
	if c.Long == "" {
		c.Long = c.Short
	}
	c.InitDefaultHelpFlag()
	one := func(f *pflag.Flag) {
		put(&f.Usage)
		if f.Name == "help" {
			f.Usage = a.t("flag.help")
		}
	}
	c.PersistentFlags().VisitAll(one)
	c.Flags().VisitAll(one)
	if c.Name() == "completion" && c.Parent() == a.root {
		c.Short, c.Long = a.t("cmd.completion.short"), a.t("cmd.completion.long")
		for _, shell := range c.Commands() {
			shell.Short = a.t("cmd.completion.shell", "Shell", shell.Name())
		}
		return // cobra's own instructions for each shell stay as they are
	}
	for _, child := range c.Commands() {
		a.localiseCommand(child)
	}
}

// complete asks a node that runs for the words that may stand as the only argument; completion never starts one.
func (a *app) complete(c *cobra.Command, args []string, words func(*control.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	if len(args) > 0 || a.flagsFromEnv(c.Flags()) != nil {
		return nil, none
	}
	a.flags.noStart = true
	node, err := a.connect(c.Context())
	if err != nil {
		return nil, none
	}
	defer node.Close()
	out, err := words(node)
	if err != nil {
		return nil, none
	}
	return out, none
}

// completeWho offers the contacts and the groups of a node that runs.
func (a *app) completeWho(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, args, func(node *control.Client) ([]string, error) {
		out, err := contactWords(c.Context(), node)
		if err != nil {
			return nil, err
		}
		if talk := c.Parent() == a.root; talk { // a group is no contact, and nobody to keep mail
			groups, _ := groupWords(c.Context(), node) // an older node knows none
			out = append(out, groups...)
		}
		return append(out, "self"), nil
	})
}

// contactWords are the names of contacts as commands take them.
func contactWords(ctx context.Context, node *control.Client) (out []string, err error) {
	resp, err := node.ListContacts(ctx, &pb.ListContactsRequest{})
	for _, c := range resp.GetContacts() {
		v := contactOf(c)
		word := v.Username
		if v.Remark != "" && !strings.ContainsAny(v.Remark, " \t'\"\\$`") {
			word = v.Remark
		}
		if word != "" {
			out = append(out, word+"\t"+v.Nickname)
		}
	}
	return out, err
}
