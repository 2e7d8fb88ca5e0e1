// Package unpack holds what Berth makes of image layers against what umoci makes
// of them: the same images, unpacked by both, are to be the same trees, in content,
// types, modes, owners, extended attributes, devices, times and names of one file.
// faults_test.go lists the differences that are allowed.
package unpack
