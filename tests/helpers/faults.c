/* Fails system calls on demand: a library for LD_PRELOAD.
 *
 * Every process that loads this maps the file named by FAULTS. It has an entry for each call: the
 * errno that the call fails with, or zero, and how many more times (-1: for ever). A negative number
 * is not a failure: down to -64 it is a signal that arrives in the middle of the call; below that it
 * limits how many messages the call takes: -65 to none, -66 to one, and so on.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

struct fault {
    atomic_int error;
    atomic_int times;
};

/* In the order of faults.CALLS. */
enum {
    SOCKET, SOCKETPAIR, EVENTFD, FORK, THREAD,
    RECVMMSG, SENDMMSG, RECVMSG, SENDMSG, RECVFROM, SENDTO,
    CALLS
};

static struct fault *faults;

__attribute__((constructor)) static void map_faults(void)
{
    const char *path = getenv("FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *start =
        mmap(NULL, CALLS * sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    faults = start == MAP_FAILED ? NULL : start;
}

/* Return the errno that a call fails with this time, or zero. */
static int planned(int call)
{
    if (!faults)
        return 0;
    int error = atomic_load(&faults[call].error);
    if (error == 0)
        return 0;
    int times = atomic_load(&faults[call].times);
    while (times > 0)
        if (atomic_compare_exchange_weak(&faults[call].times, &times, times - 1))
            return error;
    return times == 0 ? 0 : error;
}

enum { LAST_SIGNAL = 64 };

/* Like planned(), but raises a planned signal here. */
static int fault(int call)
{
    int error = planned(call);
    if (error < 0 && error >= -LAST_SIGNAL) {
        raise(-error);
        return 0;
    }
    return error;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define FAIL(call)                                                                                 \
    do {                                                                                           \
        int error = fault(call);                                                                   \
        if (error > 0) {                                                                           \
            errno = error;                                                                         \
            return -1;                                                                             \
        }                                                                                          \
    } while (0)

int socket(int domain, int type, int protocol)
{
    FAIL(SOCKET);
    return REAL(socket)(domain, type, protocol);
}

int socketpair(int domain, int type, int protocol, int ends[2])
{
    FAIL(SOCKETPAIR);
    return REAL(socketpair)(domain, type, protocol, ends);
}

int eventfd(unsigned int count, int flags)
{
    FAIL(EVENTFD);
    return REAL(eventfd)(count, flags);
}

pid_t fork(void)
{
    FAIL(FORK);
    return REAL(fork)();
}

int pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attributes,
                   void *(*start)(void *), void *restrict argument)
{
    int error = fault(THREAD);
    return error ? error : REAL(pthread_create)(thread, attributes, start, argument);
}

/* The types of the flags and the timeout differ between C libraries. */
#ifdef __GLIBC__
int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags,
             struct timespec *timeout)
#else
int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, unsigned int flags,
             struct timespec *timeout)
#endif
{
    FAIL(RECVMMSG);
    return REAL(recvmmsg)(fd, messages, count, flags, timeout);
}

#ifdef __GLIBC__
int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
#else
int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, unsigned int flags)
#endif
{
    int limit = fault(SENDMMSG);
    if (limit > 0) {
        errno = limit;
        return -1;
    }
    unsigned int most = -1 - LAST_SIGNAL - limit;
    return REAL(sendmmsg)(fd, messages, limit && most < count ? most : count, flags);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    FAIL(RECVMSG);
    return REAL(recvmsg)(fd, message, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    FAIL(SENDMSG);
    return REAL(sendmsg)(fd, message, flags);
}

ssize_t recvfrom(int fd, void *restrict memory, size_t size, int flags,
                 struct sockaddr *restrict from, socklen_t *restrict from_size)
{
    FAIL(RECVFROM);
    return REAL(recvfrom)(fd, memory, size, flags, from, from_size);
}

ssize_t sendto(int fd, const void *memory, size_t size, int flags, const struct sockaddr *to,
               socklen_t to_size)
{
    FAIL(SENDTO);
    return REAL(sendto)(fd, memory, size, flags, to, to_size);
}
