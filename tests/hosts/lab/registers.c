/* Preloaded into a guest's kernel, a program of this machine, so that it runs on processors with more registers than it
 * was made for.
 *
 * User Mode Linux keeps the extended registers of its processes in buffers of a fixed size: those up to AVX-512. Linux
 * wants the whole set back, or refuses; on a processor with AMX that is four times as much, and the guest's first
 * process dies before its first instruction. Here the kernel gets the part it has room for, and what it gives back is
 * laid over the rest as it is. That rest are registers that a program must ask its kernel for, and this one grants none.
 */

#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* More than any processor has. One thread of the kernel does all of this. */
static _Alignas(64) unsigned char all[1 << 16];

static long get(pid_t process, struct iovec *part)
{
	struct iovec whole = {all, sizeof all};

	if (syscall(SYS_ptrace, PTRACE_GETREGSET, process, NT_X86_XSTATE, &whole) < 0)
		return -1;
	if (part->iov_len > whole.iov_len)
		part->iov_len = whole.iov_len;
	memcpy(part->iov_base, all, part->iov_len);
	return 0;
}

static long set(pid_t process, const struct iovec *part)
{
	struct iovec whole = {all, sizeof all};

	if (syscall(SYS_ptrace, PTRACE_GETREGSET, process, NT_X86_XSTATE, &whole) < 0)
		return -1;
	memcpy(all, part->iov_base, part->iov_len < whole.iov_len ? part->iov_len : whole.iov_len);
	return syscall(SYS_ptrace, PTRACE_SETREGSET, process, NT_X86_XSTATE, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	pid_t process = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	if (address == (void *)NT_X86_XSTATE && request == PTRACE_GETREGSET)
		return get(process, data);
	if (address == (void *)NT_X86_XSTATE && request == PTRACE_SETREGSET)
		return set(process, data);
	if (request != PTRACE_PEEKTEXT && request != PTRACE_PEEKDATA && request != PTRACE_PEEKUSER)
		return syscall(SYS_ptrace, request, process, address, data);
	/* What these read, the C library returns. */
	long word;
	if (syscall(SYS_ptrace, request, process, address, &word) < 0)
		return -1;
	errno = 0;
	return word;
}
