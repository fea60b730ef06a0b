/* Faults for benchmarks/reliability.py: preloaded, it counts the calls of its process that change
 * files below one folder, and lets the n-th of them fail.  `fault_arm` starts the count.
 *
 *   KILL   SIGKILL in place of the call; first the names of files with data that no sync has put to
 *          disk are written to `report`, so that a power loss can be played
 *   FULL   from the n-th call on, whatever needs room fails with ENOSPC
 *   EIO    the n-th call fails with EIO
 *   SHORT  from the n-th call on, writes write a part of what they are given
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { OFF, KILL, FULL, EIO_ONCE, SHORT };
enum { FILES = 512, LENGTH = 512 };

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static int kind = OFF;
static long target, calls;
static unsigned long random_state;
static char folder[LENGTH], report[LENGTH];
static char unsynced[FILES][LENGTH];

void fault_arm(int what, long at, unsigned long seed, const char *below, const char *to) {
    pthread_mutex_lock(&guard);
    kind = what, target = at, calls = 0, random_state = seed | 1;
    snprintf(folder, LENGTH, "%s", below);
    snprintf(report, LENGTH, "%s", to);
    memset(unsynced, 0, sizeof unsynced);
    pthread_mutex_unlock(&guard);
}

long fault_calls(void) { return calls; }

static int below_folder(const char *path) {
    return folder[0] && !strncmp(path, folder, strlen(folder));
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, LENGTH - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below_folder(path);
}

/* Whether a file has data that are not on the disk. */
static void mark(const char *path, int dirty) {
    int empty = -1;
    for (int i = 0; i < FILES; i++) {
        if (!strcmp(unsynced[i], path)) {
            if (!dirty) unsynced[i][0] = 0;
            return;
        }
        if (!unsynced[i][0]) empty = i;
    }
    if (dirty && empty >= 0) snprintf(unsynced[empty], LENGTH, "%s", path);
}

static void end(void) {
    int out = creat(report, 0600);
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    for (int i = 0; i < FILES; i++) {
        if (!unsynced[i][0]) continue;
        real(out, unsynced[i], strlen(unsynced[i]));
        real(out, "\n", 1);
    }
    raise(SIGKILL);
}

/* Count a call; 0 lets it happen, else it is the errno to fail with. */
static int count(int needs_room) {
    if (kind == OFF) {
        calls++;
        return 0;
    }
    calls++;
    if (kind == KILL && calls == target) end();
    if (kind == FULL && calls >= target && needs_room) return ENOSPC;
    if (kind == EIO_ONCE && calls == target) return EIO;
    return 0;
}

static size_t shortened(size_t size) {
    if (kind != SHORT || calls < target || size < 2) return size;
    random_state = random_state * 6364136223846793005UL + 1442695040888963407UL;
    return 1 + (random_state >> 33) % (size - 1);
}

#define REAL(name)                                                   \
    static __typeof__(&name) real;                                   \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);

#define ON_FD(needs_room, dirty)                                     \
    char path[LENGTH];                                               \
    if (path_of(fd, path)) {                                         \
        pthread_mutex_lock(&guard);                                  \
        int failure = count(needs_room);                             \
        if (!failure && (dirty) >= 0) mark(path, dirty);             \
        pthread_mutex_unlock(&guard);                                \
        if (failure) return errno = failure, -1;                     \
    }

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write)
    ON_FD(1, 1)
    return real(fd, data, folder[0] && path_of(fd, path) ? shortened(size) : size);
}

#define PWRITE(name)                                                             \
    ssize_t name(int fd, const void *data, size_t size, off_t at) {              \
        REAL(name)               \
        ON_FD(1, 1)                                                              \
        return real(fd, data, path_of(fd, path) ? shortened(size) : size, at);   \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define TRUNCATE(name)                                                           \
    int name(int fd, off_t size) {                                               \
        REAL(name)                                         \
        ON_FD(1, 1)                                                              \
        return real(fd, size);                                                   \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

/* The mark goes before the call: a sync that fails keeps nothing promised, and the run stops. */
#define SYNC(name)                                                               \
    int name(int fd) {                                                           \
        REAL(name)                                                \
        ON_FD(1, 0)                                                              \
        return real(fd);                                                         \
    }
SYNC(fsync)
SYNC(fdatasync)

#define COPY(name)                                                               \
    ssize_t name(int fd, int from, off_t *at, size_t size) {                     \
        REAL(name)                      \
        ON_FD(1, 1)                                                              \
        return real(fd, from, at, size);                                         \
    }
COPY(sendfile)
COPY(sendfile64)

#define ON_PATH(path, needs_room)                                                \
    if (below_folder(path)) {                                                    \
        pthread_mutex_lock(&guard);                                              \
        int failure = count(needs_room);                                         \
        pthread_mutex_unlock(&guard);                                            \
        if (failure) return errno = failure, -1;                                 \
    }

#define OPEN(name)                                                               \
    int name(const char *path, int flags, ...) {                                 \
        REAL(name)                             \
        va_list rest;                                                            \
        va_start(rest, flags);                                                   \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                \
        va_end(rest);                                                            \
        if (flags & O_CREAT) {                                                   \
            ON_PATH(path, 1)                                                     \
        }                                                                        \
        return real(path, flags, mode);                                          \
    }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir)
    ON_PATH(path, 1)
    return real(path, mode);
}

int unlink(const char *path) {
    REAL(unlink)
    ON_PATH(path, 0)
    return real(path);
}

int rename(const char *from, const char *to) {
    REAL(rename)
    ON_PATH(from, 0)
    return real(from, to);
}
