// Package security owns the corpus of holes that container runtimes and node
// agents have had: corpus.txt gives each a verdict, which is either that Berth
// blocks it, by the named test that builds the malicious image, mount,
// annotation, log path, archive or request, or that it is not Berth's, and why.
// bounds.txt lists every byte that somebody untrusted can make Berth hold or
// write, and exempt.txt every call that reaches below an untrusted root by a
// joined path, and why it may. docs/security.md is made of these:
//
//	go test ./test/security -run Page -rewrite
//
// The tests of the package run containers on one runtime of their own, with crun
// and with runc.
package security
