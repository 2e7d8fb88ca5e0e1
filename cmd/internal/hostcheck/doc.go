// Package hostcheck looks at what a host offers to Berth: programs and their
// versions, kernel features, limits and space. It changes nothing, and says for
// everything that lacks the command that mends it.
package hostcheck
