// Package status owns what the rest of the node may know about its pods: the
// latest snapshot of each, the events that happened to them, and those who watch
// either.
//
//	workers ──Set, Event──▶ Store ──▶ List, Get, Events
//	                          └──latest of each pod──▶ watchers
//
// Whoever tells the Store something never waits for whoever reads: a watcher
// that is slow misses steps on the way, never where a pod got to.
package status
