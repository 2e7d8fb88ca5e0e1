/* stamp FILE: the benchmark's workload. Its first act is to read CLOCK_MONOTONIC; it writes the nanoseconds to FILE and
 * sleeps until it is told to end. Without FILE it only sleeps: the peer's pause container. Freestanding but for libc's
 * system call wrappers; linked statically, so that it measures the node and not a dynamic loader. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void end(int signal) { (void)signal; _exit(0); }

int main(int argc, char **argv) {
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	signal(SIGTERM, end);
	signal(SIGINT, end);
	if (argc > 1) {
		char temporary[4096], line[64];
		snprintf(temporary, sizeof temporary, "%s.tmp", argv[1]);
		int n = snprintf(line, sizeof line, "%lld\n", (long long)now.tv_sec * 1000000000LL + now.tv_nsec);
		int fd = open(temporary, O_CREAT | O_WRONLY | O_TRUNC, 0644);
		if (fd < 0 || write(fd, line, n) != n || close(fd) != 0 || rename(temporary, argv[1]) != 0)
			return 1;
	}
	for (;;)
		pause();
}
