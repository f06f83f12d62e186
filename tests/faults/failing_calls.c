/* File operations that fail on purpose, or that are written down.
 *
 * Preloaded into a process (LD_PRELOAD), this stands before the C library's functions. Of the
 * calls of some kinds, on paths below one folder, it lets the n-th fail with an errno; or it lets
 * writing fail once so many bytes are written, as a disk does that is full; or it writes all of
 * them into a log, with their data. What is asked for is said by failing_calls_begin(), or by the
 * variables FAILING_CALLS_… when the process starts; a forked process goes on with its parent's.
 *
 * A call names its file by a path, by one below an open folder, or by a descriptor, whose path is
 * asked of /proc/self/fd. Calls inside the C library itself are not seen: nothing here makes any.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, WRITE, FSYNC, RENAME, UNLINK, MKDIR, READ, TRUNCATE, KINDS };
static const char *const NAMES[KINDS] = {"open", "write", "fsync", "rename",
                                         "unlink", "mkdir", "read", "truncate"};

static struct {
    int is_on, error, lasts, log;  /* lasts: all later calls fail, too; log: a descriptor, or -1 */
    unsigned kinds;                /* a bit for each kind that counts */
    long at, seen;                 /* which call fails (-1: none), how many there were */
    long long room;                /* bytes until the disk is full; -1: it never is */
    char folder[PATH_MAX], where[PATH_MAX]; /* what was asked for; the path of the last failure */
} plan;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

void failing_calls_begin(const char *folder, unsigned kinds, long at, int error, int lasts,
                         long long room, int log) {
    snprintf(plan.folder, sizeof plan.folder, "%s", folder);
    plan.kinds = kinds, plan.at = at, plan.error = error, plan.lasts = lasts, plan.room = room;
    plan.log = log, plan.seen = 0, plan.where[0] = 0, plan.is_on = 1;
}

long failing_calls_end(void) {
    plan.is_on = 0;
    return plan.seen;
}

const char *failing_calls_where(void) { return plan.where; }

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : otherwise;
}

__attribute__((constructor)) static void as_the_environment_says(void) {
    const char *folder = getenv("FAILING_CALLS_FOLDER");
    if (folder)
        failing_calls_begin(folder, (unsigned)number("FAILING_CALLS_KINDS", 0),
                            number("FAILING_CALLS_AT", -1), (int)number("FAILING_CALLS_ERROR", EIO),
                            (int)number("FAILING_CALLS_LASTS", 0),
                            number("FAILING_CALLS_ROOM", -1), -1);
}

/* The absolute path of what a call is about. */
static const char *path_of(int folder, const char *name, char *path) {
    char link[64];
    ssize_t length = 0;
    if (name && name[0] == '/') return name;
    if (folder == AT_FDCWD) {
        if (!getcwd(path, PATH_MAX)) return "";
        length = (ssize_t)strlen(path);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        if ((length = readlink(link, path, PATH_MAX - 1)) < 0) return "";
        path[length] = 0;
    }
    if (name) snprintf(path + length, (size_t)(PATH_MAX - length), "/%s", name);
    return path;
}

static int is_ours(const char *path) {
    size_t length = strlen(plan.folder);
    return plan.is_on && !strncmp(path, plan.folder, length)
           && (path[length] == 0 || path[length] == '/');
}

/* Whether this call is to fail; errno says how. */
static int fails(enum kind kind, const char *path) {
    if (!plan.is_on || !(plan.kinds >> kind & 1) || !is_ours(path)) return 0;
    pthread_mutex_lock(&turn);
    long now = plan.seen++;
    int it_fails = plan.at >= 0 && (plan.lasts ? now >= plan.at : now == plan.at);
    if (it_fails) snprintf(plan.where, sizeof plan.where, "%s", path);
    pthread_mutex_unlock(&turn);
    if (it_fails) errno = plan.error;
    return it_fails;
}

#define REAL(name) \
    static typeof(name) *real; \
    if (!real) real = (typeof(name) *)dlsym(RTLD_NEXT, #name)

static void put(const void *data, size_t size) {
    REAL(write);
    for (const char *at = data; size > 0;) {
        ssize_t done = real(plan.log, at, size);
        if (done <= 0) abort();
        at += done, size -= (size_t)done;
    }
}

/* A line of the log, KIND TAB NUMBER TAB SIZE TAB PATH TAB OTHER, then SIZE bytes. */
static void note(enum kind kind, long long about, const char *path, const char *other,
                 const void *data, size_t size) {
    char line[2 * PATH_MAX + 64];
    int before = errno;
    if (!plan.is_on || plan.log < 0 || !(plan.kinds >> kind & 1) || !is_ours(path)) return;
    int length = snprintf(line, sizeof line, "%s\t%lld\t%zu\t%s\t%s\n", NAMES[kind], about, size,
                          path, other);
    pthread_mutex_lock(&turn);
    put(line, (size_t)length);
    put(data, size);
    pthread_mutex_unlock(&turn);
    errno = before;
}

/* ----- open ----- */

#define OPENED(call, folder, name, flags) \
    char buffer[PATH_MAX]; \
    const char *path = plan.is_on ? path_of(folder, name, buffer) : ""; \
    if (fails(OPEN, path)) return -1; \
    int opened = call; \
    if (opened >= 0) note(OPEN, flags, path, "", "", 0); \
    return opened

static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define DEFINE_OPEN(function) \
    int function(const char *name, int flags, ...) { \
        REAL(function); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = mode_of(flags, rest); \
        va_end(rest); \
        OPENED(real(name, flags, mode), AT_FDCWD, name, flags); \
    }

#define DEFINE_OPENAT(function) \
    int function(int folder, const char *name, int flags, ...) { \
        REAL(function); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = mode_of(flags, rest); \
        va_end(rest); \
        OPENED(real(folder, name, flags, mode), folder, name, flags); \
    }

#define DEFINE_CREAT(function) \
    int function(const char *name, mode_t mode) { \
        REAL(function); \
        OPENED(real(name, mode), AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC); \
    }

#define DEFINE_FOPEN(function) \
    FILE *function(const char *restrict name, const char *restrict mode) { \
        REAL(function); \
        char buffer[PATH_MAX]; \
        return fails(OPEN, path_of(AT_FDCWD, name, buffer)) ? NULL : real(name, mode); \
    }

DEFINE_OPEN(open)
DEFINE_OPEN(open64)
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)
DEFINE_CREAT(creat)
DEFINE_CREAT(creat64)
DEFINE_FOPEN(fopen)
DEFINE_FOPEN(fopen64)

/* ----- write, truncate, read ----- */

/* How much of a write still finds room; -1: it fails. A full disk takes what fits, then nothing. */
static ssize_t room_for(int file, size_t size, char *path) {
    if (!plan.is_on) return (ssize_t)size;
    if (!is_ours(path_of(file, NULL, path))) return (ssize_t)size;
    if (fails(WRITE, path)) return -1;
    pthread_mutex_lock(&turn);
    ssize_t fits = plan.room >= 0 && (long long)size > plan.room ? (ssize_t)plan.room
                                                                 : (ssize_t)size;
    if (plan.room >= 0) plan.room -= fits;
    if (fits == 0 && size > 0) snprintf(plan.where, sizeof plan.where, "%s", path);
    pthread_mutex_unlock(&turn);
    if (fits > 0 || size == 0) return fits;
    errno = ENOSPC;
    return -1;
}

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    char path[PATH_MAX] = "";
    ssize_t fits = room_for(file, size, path);
    if (fits < 0) return -1;
    ssize_t done = real(file, data, (size_t)fits);
    if (done > 0 && plan.is_on && plan.log >= 0)
        note(WRITE, (long long)lseek64(file, 0, SEEK_CUR) - done, path, "", data, (size_t)done);
    return done;
}

#define DEFINE_PWRITE(function, offset_type) \
    ssize_t function(int file, const void *data, size_t size, offset_type offset) { \
        REAL(function); \
        char path[PATH_MAX] = ""; \
        ssize_t fits = room_for(file, size, path); \
        if (fits < 0) return -1; \
        ssize_t done = real(file, data, (size_t)fits, offset); \
        if (done > 0) note(WRITE, offset, path, "", data, (size_t)done); \
        return done; \
    }

DEFINE_PWRITE(pwrite, off_t)
DEFINE_PWRITE(pwrite64, off64_t)

/* Of several pieces the first is written: a write may always be short, and its caller goes on. */
ssize_t writev(int file, const struct iovec *pieces, int count) {
    REAL(writev);
    if (!plan.is_on) return real(file, pieces, count);
    while (count > 1 && pieces->iov_len == 0) pieces++, count--;
    return count > 0 ? write(file, pieces->iov_base, pieces->iov_len) : real(file, pieces, count);
}

#define DEFINE_FTRUNCATE(function, offset_type) \
    int function(int file, offset_type size) { \
        REAL(function); \
        char path[PATH_MAX] = ""; \
        if (plan.is_on && fails(TRUNCATE, path_of(file, NULL, path))) return -1; \
        int done = real(file, size); \
        if (!done) note(TRUNCATE, size, path, "", "", 0); \
        return done; \
    }

DEFINE_FTRUNCATE(ftruncate, off_t)
DEFINE_FTRUNCATE(ftruncate64, off64_t)

ssize_t read(int file, void *data, size_t size) {
    REAL(read);
    char path[PATH_MAX];
    if (plan.is_on && fails(READ, path_of(file, NULL, path))) return -1;
    return real(file, data, size);
}

/* ----- fsync ----- */

#define DEFINE_FSYNC(function) \
    int function(int file) { \
        REAL(function); \
        char path[PATH_MAX] = ""; \
        if (plan.is_on && fails(FSYNC, path_of(file, NULL, path))) return -1; \
        int done = real(file); \
        if (!done) note(FSYNC, 0, path, "", "", 0); \
        return done; \
    }

DEFINE_FSYNC(fsync)
DEFINE_FSYNC(fdatasync)

/* ----- names ----- */

#define CHANGED(kind, call, folder, name) \
    char buffer[PATH_MAX]; \
    const char *path = plan.is_on ? path_of(folder, name, buffer) : ""; \
    if (fails(kind, path)) return -1; \
    int done = call; \
    if (!done) note(kind, 0, path, "", "", 0); \
    return done

#define RENAMED(call, from, name, to, target) \
    char buffer[PATH_MAX], other[PATH_MAX]; \
    const char *path = plan.is_on ? path_of(from, name, buffer) : ""; \
    const char *end = plan.is_on ? path_of(to, target, other) : ""; \
    if (fails(RENAME, path)) return -1; \
    int done = call; \
    if (!done) note(RENAME, 0, path, end, "", 0); \
    return done

int rename(const char *name, const char *target) {
    REAL(rename);
    RENAMED(real(name, target), AT_FDCWD, name, AT_FDCWD, target);
}

int renameat(int from, const char *name, int to, const char *target) {
    REAL(renameat);
    RENAMED(real(from, name, to, target), from, name, to, target);
}

int renameat2(int from, const char *name, int to, const char *target, unsigned flags) {
    REAL(renameat2);
    RENAMED(real(from, name, to, target, flags), from, name, to, target);
}

int unlink(const char *name) {
    REAL(unlink);
    CHANGED(UNLINK, real(name), AT_FDCWD, name);
}

int unlinkat(int folder, const char *name, int flags) {
    REAL(unlinkat);
    CHANGED(UNLINK, real(folder, name, flags), folder, name);
}

int rmdir(const char *name) {
    REAL(rmdir);
    CHANGED(UNLINK, real(name), AT_FDCWD, name);
}

int mkdir(const char *name, mode_t mode) {
    REAL(mkdir);
    CHANGED(MKDIR, real(name, mode), AT_FDCWD, name);
}

int mkdirat(int folder, const char *name, mode_t mode) {
    REAL(mkdirat);
    CHANGED(MKDIR, real(folder, name, mode), folder, name);
}
