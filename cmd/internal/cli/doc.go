// Package cli is the command line: one file a subcommand. It owns what is
// printed and the exit codes; what is true comes from the agent through
// cmd/internal/client.
//
// Exit codes: 0 done; 1 failed, with one message on standard error; 130 ended
// by Ctrl-C; `exec` and `attach` give the remote command's own.
package cli
