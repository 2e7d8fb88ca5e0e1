#!/bin/sh
# Builds the tiny init for both architectures into the directory $1. The bytes
# depend on nothing but init.c and the compiler: no paths, dates or build IDs.
set -eu
into=$(realpath "$1")
cd "$(dirname "$0")"
build() {
	out=$1 cc=$2
	shift 2
	"$cc-gcc" "$@" -Os -std=c11 -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-stack-protector \
		-fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -fno-pic -nostdlib -static -no-pie -s \
		-Wl,--build-id=none,-z,noseparate-code,-z,noexecstack,-z,max-page-size=4096 -o "$out" init.c
	"$cc-strip" -R .comment -R '.note*' "$out"
}
build "$into/init-amd64" x86_64-linux-gnu -fcf-protection=none
build "$into/init-arm64" aarch64-linux-gnu -mno-outline-atomics
