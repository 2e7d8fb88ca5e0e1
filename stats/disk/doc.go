// Package disk owns the question how much space a directory tree takes.
//
// Trees are written by containers, which may do with them what they like while
// they are walked: nothing is followed out of a tree, at most three files are
// open at once however deep it is, and what is remembered is bounded. The walk
// never leaves the mount that the tree begins on.
package disk
