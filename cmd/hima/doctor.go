package main

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"hima/internal/control/pb"
)

func (a *app) doctorCommand() *cobra.Command {
	return a.command(spec{use: "doctor", id: "doctor", run: func(ctx context.Context, _ []string) error { return a.doctor(ctx) }})
}

// doctor shows what the node found, a line for each check, and ends with 1 unless all is well.
func (a *app) doctor(ctx context.Context) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.Doctor(ctx, &pb.DoctorRequest{})
	if err != nil {
		return err
	}
	well := "doctor.well"
	for _, c := range resp.GetChecks() {
		v := checkOf(c)
		if v.State == checkWarning {
			well = "doctor.works"
		}
		if a.flags.json {
			if err := a.emit(v); err != nil {
				return err
			}
			continue
		}
		if a.flags.quiet && (v.State == checkOK || v.State == checkOff) {
			continue
		}
		a.printf("%s\n", a.checkLine(v, time.Now()))
	}
	if !resp.GetWell() {
		return &silent{exitFailed}
	}
	a.done(well)
	return nil
}

// States of a check.
const (
	checkOK      = "ok"
	checkWarning = "warning"
	checkProblem = "problem"
	checkOff     = "off"
)

// checkLine is one check: a sign for its state, what was looked at, what was found, and what to do about it.
func (a *app) checkLine(v checkView, now time.Time) string {
	sign := a.dim("–")
	switch v.State {
	case checkOK:
		sign = a.green("✓")
	case checkWarning:
		sign = a.yellow("!")
	case checkProblem:
		sign = a.yellow("✗")
	}
	data := checkData(v.Values, now)
	id := "doctor." + v.ID + "." + v.Detail
	found := a.t(id, data...)
	if found == id { // a newer node looks at more than this program knows
		found = strings.Join(append([]string{v.Detail}, plainValues(v.Values)...), " ")
	}
	line := sign + " " + a.t("doctor.line", "Check", a.bold(a.word("check", v.ID)), "Found", found)
	if do := a.t(id+".do", data...); do != id+".do" && v.State != checkOK {
		line += " → " + do
	}
	return line
}

// checkPlaceholders are the values that sentences of checks may name. A node that leaves one out must not leave a hole.
func checkPlaceholders() []string {
	return []string{
		"Address", "Count", "Error", "Free", "Holder", "Limit", "Name", "Network", "Skew", "Time", "Used", "Username",
	}
}

// checkData turns the values of a check into the placeholders of its sentence.
func checkData(values map[string]string, now time.Time) []any {
	shown := map[string]string{}
	for key, value := range values {
		n, err := strconv.ParseInt(value, 10, 64)
		switch base, ending := valueEnding(key); {
		case err != nil || ending == "":
			shown[camel(key)] = value
		case ending == "_bytes":
			shown[camel(base)] = humanize.IBytes(uint64(max(n, 0)))
		case ending == "_for_ms":
			shown[camel(base)] = duration(time.Duration(n) * time.Millisecond)
		case n == 0:
			shown[camel(base)] = "–"
		default:
			shown[camel(base)] = localTime(time.UnixMilli(n), now)
		}
	}
	if holder, ok := shown["Holder"]; ok {
		shown["Holder"] = shortAccount(holder)
	}
	var data []any
	for _, key := range checkPlaceholders() {
		data = append(data, key, firstOf(shown[key], "–"))
	}
	return data
}

// valueEnding splits off the end of a key that says how its value is shown.
func valueEnding(key string) (base, ending string) {
	for _, e := range []string{"_bytes", "_for_ms", "_at_ms"} {
		if base, ok := strings.CutSuffix(key, e); ok {
			return base, e
		}
	}
	return key, ""
}

// camel turns free_space into FreeSpace.
func camel(key string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(key, "_") {
		if part != "" {
			b.WriteString(strings.ToUpper(part[:1]) + part[1:])
		}
	}
	return b.String()
}

// plainValues are the values of a check as key=value, sorted.
func plainValues(values map[string]string) []string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(values)) {
		out = append(out, key+"="+values[key])
	}
	return out
}
