package main

import (
	"context"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/daemon"
)

func (a *app) versionCommand() *cobra.Command {
	return a.command(spec{use: "version", id: "version", run: func(context.Context, []string) error {
		protocols := daemon.Protocols()
		if a.flags.json {
			return a.emit(struct {
				Version   string   `json:"version"`
				Commit    string   `json:"commit"`
				Go        string   `json:"go"`
				System    string   `json:"system"`
				Protocols []string `json:"protocols"`
			}{control.Release, control.Commit(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, protocols})
		}
		a.printf("hima %s\n", strings.TrimSpace(control.Release+" "+control.Commit()))
		a.fields(a.out,
			a.t("field.protocols"), strings.Join(protocols, " "),
			a.t("field.built_with"), runtime.Version()+" "+runtime.GOOS+"/"+runtime.GOARCH,
		)
		return nil
	}})
}
