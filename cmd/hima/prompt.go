package main

import (
	"bufio"
	"context"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"hima/internal/control"
)

// maxAnswer bounds a line typed or read from a password file, in bytes.
const maxAnswer = 4096

// terminal is where questions go. Standard input must be one: a script is never asked.
type terminal struct {
	in  *os.File
	out io.Writer
	tty *os.File // opened by us; nil if out is stderr
	r   *bufio.Reader
}

// openTerminal prefers the controlling terminal for the questions, so that they are seen when stdout and stderr go to files.
func (a *app) openTerminal() *terminal {
	t := &terminal{in: a.in, out: a.errOut, r: bufio.NewReaderSize(a.in, maxAnswer)}
	if tty, err := os.OpenFile("/dev/tty", os.O_WRONLY, 0); err == nil {
		t.tty, t.out = tty, tty
	}
	return t
}

func (t *terminal) Close() {
	if t.tty != nil {
		_ = t.tty.Close()
	}
}

// line asks one question and returns the answer without surrounding blanks.
func (t *terminal) line(ctx context.Context, question string) (string, error) {
	_, _ = io.WriteString(t.out, question)
	s, err := interruptible(ctx, func() (string, error) {
		s, err := t.r.ReadString('\n')
		if err == io.EOF && s != "" {
			err = nil
		}
		return s, err
	})
	if err != nil {
		_, _ = io.WriteString(t.out, "\n")
		return "", asEnd(err)
	}
	return strings.TrimSpace(s), nil
}

// secret asks without showing what is typed.
func (t *terminal) secret(ctx context.Context, question string) (string, error) {
	fd := int(t.in.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	_, _ = io.WriteString(t.out, question)
	s, err := interruptible(ctx, func() (string, error) {
		b, err := term.ReadPassword(fd)
		return string(b), err
	})
	_ = term.Restore(fd, before) // an interrupt must not leave the terminal without echo
	_, _ = io.WriteString(t.out, "\n")
	return s, asEnd(err)
}

// interruptible runs a read that cannot be cancelled and lets go of it when ctx ends; the process ends right after.
func interruptible(ctx context.Context, read func() (string, error)) (string, error) {
	type result struct {
		s   string
		err error
	}
	done := make(chan result, 1)
	go func() {
		s, err := read()
		done <- result{s, err}
	}()
	select {
	case r := <-done:
		return r.s, r.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// asEnd: a terminal that is closed at a question is a person who left.
func asEnd(err error) error {
	if err == io.EOF {
		return &silent{exitInterrupted}
	}
	return err
}

// confirm asks a yes-or-no question; an empty answer means def.
func (a *app) confirm(ctx context.Context, t *terminal, question string, def bool) (bool, error) {
	choices := " [y/N] "
	if def {
		choices = " [Y/n] "
	}
	for {
		s, err := t.line(ctx, question+choices)
		if err != nil {
			return false, err
		}
		switch strings.ToLower(s) {
		case "":
			return def, nil
		case "y", "yes", "是", "好", "对":
			return true, nil
		case "n", "no", "否", "不", "不是":
			return false, nil
		}
		_, _ = io.WriteString(t.out, a.t("prompt.yes_or_no")+"\n")
	}
}

// newPassword asks twice. An empty password is allowed and said aloud.
func (a *app) newPassword(ctx context.Context, t *terminal) (string, error) {
	for {
		first, err := t.secret(ctx, a.t("prompt.new_password")+" ")
		if err != nil {
			return "", err
		}
		if first == "" {
			sure, err := a.confirm(ctx, t, a.t("prompt.no_password"), true)
			if err != nil {
				return "", err
			}
			if sure {
				return "", nil
			}
			continue
		}
		second, err := t.secret(ctx, a.t("prompt.repeat_password")+" ")
		if err != nil {
			return "", err
		}
		if first == second {
			return first, nil
		}
		_, _ = io.WriteString(t.out, a.t("prompt.passwords_differ")+"\n")
	}
}

// passwordFromFile reads the first line of a file; "-" is standard input. The line end does not belong to the password.
func (a *app) passwordFromFile(path string) (string, error) {
	s, err := a.readAll(path, maxAnswer)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(s, "\n")
	return strings.TrimSuffix(line, "\r"), nil
}

// readAll reads a small file, or standard input for "-".
func (a *app) readAll(path string, limit int64) (string, error) {
	var r io.Reader = a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fail(control.NotFound, "error.file", "Path", path, "Detail", plainError(err))
		}
		defer func() { _ = f.Close() }()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return "", fail(control.NotFound, "error.file", "Path", path, "Detail", plainError(err))
	}
	if int64(len(b)) > limit {
		return "", usage("usage.file_long", "Path", path)
	}
	return string(b), nil
}

// plainError leaves out the operation and path that os errors repeat.
func plainError(err error) string {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err.Error()
	}
	return err.Error()
}
