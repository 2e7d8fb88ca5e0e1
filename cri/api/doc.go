// Package api owns berth.cri.v1: the messages and the gRPC service by which a
// node agent asks Berth's runtime for what CRI v1 has no call for: pulls and
// imports that report progress, verification of stored images, the audit of
// leaked host resources, and facts about a container that CRI leaves out.
//
// The service is served on the socket of the CRI. A runtime without it answers
// Unimplemented; an agent then does with less, it does not fail.
package api

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative berth.proto
