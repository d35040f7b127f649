/* Makes calls of the C library fail, for tests (LD_PRELOAD).
 *
 * FAULTS is a list "CALL:ERRNO:SECONDS:TEXT,...": CALL (open, create, read, write, fsync, link, flock) fails with the
 * number ERRNO if the path of its file contains TEXT, for SECONDS from the first such call on (negative: for ever).
 * "create" is an open that may create a file. FAULTS_RANK: only in the process with this RANK. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define MOST 16

static struct fault { char call[16]; int number; double seconds; char text[256]; double since; } faults[MOST];
static int num_faults = -1;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void load(void) {
    const char *at = getenv("FAULTS"), *wanted = getenv("FAULTS_RANK"), *rank = getenv("RANK");
    int count = 0;
    if (wanted != NULL && (rank == NULL || strcmp(wanted, rank))) at = NULL;
    while (at != NULL && *at && count < MOST) {
        struct fault *f = &faults[count];
        if (sscanf(at, "%15[^:]:%d:%lf:%255[^,]", f->call, &f->number, &f->seconds, f->text) == 4) count++;
        at = strchr(at, ',');
        if (at != NULL) at++;
    }
    num_faults = count;
}

static int fails(const char *call, const char *path) {
    if (num_faults < 0) load();
    for (int i = 0; i < num_faults; i++) {
        struct fault *f = &faults[i];
        if (strcmp(f->call, call) || strstr(path, f->text) == NULL) continue;
        if (f->since == 0) f->since = now();
        if (f->seconds >= 0 && now() - f->since > f->seconds) continue;
        errno = f->number;
        return 1;
    }
    return 0;
}

static int fd_fails(const char *call, int fd) {
    char link[64], path[4096];
    if (num_faults == 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

static int open_fails(const char *path, int flags) {
    return fails("open", path) || ((flags & O_CREAT) && fails("create", path));
}

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))
#define MODE() va_list a; va_start(a, flags); int mode = va_arg(a, int); va_end(a)

int open(const char *path, int flags, ...) {
    MODE();
    return open_fails(path, flags) ? -1 : REAL("open", int (*)(const char *, int, int))(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE();
    return open_fails(path, flags) ? -1 : REAL("open64", int (*)(const char *, int, int))(path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
    MODE();
    return open_fails(path, flags) ? -1 : REAL("openat", int (*)(int, const char *, int, int))(at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    MODE();
    return open_fails(path, flags) ? -1 : REAL("openat64", int (*)(int, const char *, int, int))(at, path, flags, mode);
}
ssize_t read(int fd, void *data, size_t size) {
    return fd_fails("read", fd) ? -1 : REAL("read", ssize_t (*)(int, void *, size_t))(fd, data, size);
}
ssize_t write(int fd, const void *data, size_t size) {
    return fd_fails("write", fd) ? -1 : REAL("write", ssize_t (*)(int, const void *, size_t))(fd, data, size);
}
int fsync(int fd) { return fd_fails("fsync", fd) ? -1 : REAL("fsync", int (*)(int))(fd); }
int flock(int fd, int operation) { return fd_fails("flock", fd) ? -1 : REAL("flock", int (*)(int, int))(fd, operation); }
int link(const char *from, const char *to) {
    return fails("link", to) ? -1 : REAL("link", int (*)(const char *, const char *))(from, to);
}
