// Package logfile reads and rotates container logs in the format of the
// Container Runtime Interface:
//
//	2006-01-02T15:04:05.999999999Z stdout F a whole line
//	2006-01-02T15:04:05.999999999Z stderr P the first part of a long one
//
// The writer is the monitor (cri/monitor). A log is rotated by renaming it to
// <log>.<time> and having the monitor reopen its path: no line is lost, and
// whoever reads the old file reads it to its end. All rotated files but the
// newest are compressed to <log>.<time>.gz.
package logfile
