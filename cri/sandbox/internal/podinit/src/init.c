// The tiny init of a pod sandbox: see doc.go for what it does and when.
// Freestanding: no libc, only the system calls below.

#include <stddef.h>
#include <stdint.h>

typedef long word;

#if defined(__x86_64__)
enum { SYS_read = 0, SYS_write = 1, SYS_open_at = 257, SYS_close = 3, SYS_ioctl = 16, SYS_socket = 41, SYS_exit = 60,
       SYS_wait4 = 61, SYS_sethostname = 170, SYS_prctl = 157, SYS_sigprocmask = 14, SYS_sigtimedwait = 128, SYS_setsid = 112,
       SYS_close_range = 436 };

static word syscall4(word n, word a, word b, word c, word d)
{
	register word r10 __asm__("r10") = d;
	word ret;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return ret;
}

__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov %rsp,%rdi\n\tand $-16,%rsp\n\tcall begin\n");
#elif defined(__aarch64__)
enum { SYS_read = 63, SYS_write = 64, SYS_open_at = 56, SYS_close = 57, SYS_ioctl = 29, SYS_socket = 198, SYS_exit = 93,
       SYS_wait4 = 260, SYS_sethostname = 161, SYS_prctl = 167, SYS_sigprocmask = 135, SYS_sigtimedwait = 137, SYS_setsid = 157,
       SYS_close_range = 436 };

static word syscall4(word n, word a, word b, word c, word d)
{
	register word x8 __asm__("x8") = n;
	register word x0 __asm__("x0") = a;
	register word x1 __asm__("x1") = b;
	register word x2 __asm__("x2") = c;
	register word x3 __asm__("x3") = d;
	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}

__asm__(".globl _start\n_start:\n\tmov x29,#0\n\tmov x0,sp\n\tbl begin\n");
#else
#error "no system calls known for this machine"
#endif

enum { AT_FDCWD = -100, O_WRONLY = 1, O_CLOEXEC = 02000000, AF_INET = 2, SOCK_DGRAM = 2, PR_SET_NAME = 15,
       SIOCGIFFLAGS = 0x8913, SIOCSIFFLAGS = 0x8914, IFF_UP = 1, SIG_BLOCK = 0, SIGTERM = 15, SIGCHLD = 17,
       WNOHANG = 1, EINTR = 4 };

enum { CONTROL = 0, STATUS = 1 };           // inherited descriptors
enum { STEP_DONE, STEP_HOSTNAME, STEP_LOOPBACK, STEP_SYSCTL }; // the n-th sysctl is STEP_SYSCTL + n

static size_t length(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

static void quit(int code)
{
	for (;;)
		syscall4(SYS_exit, code, 0, 0, 0);
}

// report tells the agent how far it went: step and error number, 4 bytes each.
static void report(int step, word err)
{
	int32_t answer[2] = { step, (int32_t)-err };
	syscall4(SYS_write, STATUS, (word)answer, sizeof answer, 0);
	if (step != STEP_DONE)
		quit(1);
}

static word raise_loopback(void)
{
	struct { char name[16]; short flags; char rest[22]; } req = { .name = "lo" };
	word fd = syscall4(SYS_socket, AF_INET, SOCK_DGRAM | O_CLOEXEC, 0, 0);
	if (fd < 0)
		return fd;
	word err = syscall4(SYS_ioctl, fd, SIOCGIFFLAGS, (word)&req, 0);
	if (err >= 0) {
		req.flags |= IFF_UP;
		err = syscall4(SYS_ioctl, fd, SIOCSIFFLAGS, (word)&req, 0);
	}
	syscall4(SYS_close, fd, 0, 0, 0);
	return err;
}

static word set_sysctl(const char *path, const char *value)
{
	word fd = syscall4(SYS_open_at, AT_FDCWD, (word)path, O_WRONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	word err = syscall4(SYS_write, fd, (word)value, (word)length(value), 0);
	syscall4(SYS_close, fd, 0, 0, 0);
	return err;
}

// reap is the life of PID 1: it collects the dead, and ends on a SIGTERM from
// outside its PID namespace (whose sender has no number inside: si_pid is 0).
static void reap(void)
{
	uint64_t set = 1ull << (SIGTERM - 1) | 1ull << (SIGCHLD - 1);
	int32_t siginfo[32];
	for (;;) {
		for (size_t i = 0; i < 32; i++)
			siginfo[i] = 0;
		word sig = syscall4(SYS_sigtimedwait, (word)&set, (word)siginfo, 0, sizeof set);
		if (sig == SIGTERM && siginfo[4] == 0)
			quit(0);
		while (syscall4(SYS_wait4, -1, 0, WNOHANG, 0) > 0)
			;
	}
}

// begin is entered with the stack as the kernel left it: argc, then argv.
// argv: name, "hold" or "reap", hostname, "lo" or "", then pairs of sysctl path and value.
__attribute__((noreturn, used)) void begin(word *stack)
{
	word argc = stack[0];
	char **argv = (char **)(stack + 1);
	uint64_t all = ~0ull;
	char go;
	word n;

	syscall4(SYS_prctl, PR_SET_NAME, (word)"berth-init", 0, 0);
	if (argc < 4)
		quit(2);
	syscall4(SYS_sigprocmask, SIG_BLOCK, (word)&all, 0, sizeof all);
	syscall4(SYS_setsid, 0, 0, 0, 0);
	do
		n = syscall4(SYS_read, CONTROL, (word)&go, 1, 0);
	while (n == -EINTR);
	if (n != 1) // the agent has gone: what it was making will be removed
		quit(0);

	if (argv[2][0] && (n = syscall4(SYS_sethostname, (word)argv[2], (word)length(argv[2]), 0, 0)) < 0)
		report(STEP_HOSTNAME, n);
	if (argv[3][0] && (n = raise_loopback()) < 0)
		report(STEP_LOOPBACK, n);
	for (word i = 4; i + 1 < argc; i += 2)
		if ((n = set_sysctl(argv[i], argv[i + 1])) < 0)
			report(STEP_SYSCTL + (int)(i - 4) / 2, n);
	report(STEP_DONE, 0);
	if (argv[1][0] != 'r')
		quit(0);
	// Everything, what the agent itself inherited without knowing included.
	syscall4(SYS_close_range, 0, ~0u, 0, 0);
	reap();
	quit(0);
	__builtin_unreachable();
}
