/* Preloaded before libc: the n-th file operation below a folder, and all after it, fail or kill the process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ON_WRITE = 1, ON_OPEN = 2, ON_NAME = 4 };  /* data; opening for writing; names and modes */

static char folder[PATH_MAX];
static long count, nth = -1;
static int failure, which;  /* failure: an errno, or 0 to be killed */

/* Begin to count the operations of the kinds `kinds` below `path`; the n-th one fails with `error`. */
void attack_begin(const char *path, long n, int error, int kinds) {
    snprintf(folder, sizeof folder, "%s/", path);
    count = 0; nth = n; failure = error; which = kinds;
}

long attack_count(void) { return count; }

static int below(int dir, const char *path) {
    char whole[2 * PATH_MAX], link[64];
    if (nth < 0 || !path) return 0;
    if (path[0] == '/') return !strncmp(path, folder, strlen(folder));
    if (dir == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t length = readlink(link, whole, PATH_MAX);
        if (length < 0) return 0;
        whole[length] = 0;
    }
    if (*path) strcat(strcat(whole, "/"), path);
    return !strncmp(whole, folder, strlen(folder));
}

static int attacked(int kind) {
    if (!(which & kind) || __sync_add_and_fetch(&count, 1) < nth) return 0;
    if (!failure) { kill(getpid(), SIGKILL); pause(); }
    errno = failure;
    return 1;
}

static int attacked_fd(int fd) { return below(fd, "") && attacked(ON_WRITE); }

/* A full disk does not hinder the opening of a file that is there. */
static int attacked_open(int dir, const char *path, int flags) {
    if ((flags & O_ACCMODE) == O_RDONLY || !below(dir, path)) return 0;
    if (failure == ENOSPC && !faccessat(dir, path, F_OK, 0)) return 0;
    return attacked(ON_OPEN);
}

/* Removing, or a change of mode, needs no room; and it fails for its own reason where there is nothing. */
static int attacked_there(int dir, const char *path) {
    struct stat found;
    if (failure == ENOSPC || !below(dir, path) || fstatat(dir, path, &found, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH))
        return 0;
    return attacked(ON_NAME);
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); \
    mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) {
    REAL(open); MODE
    return attacked_open(AT_FDCWD, path, flags) ? -1 : real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    REAL(open64); MODE
    return attacked_open(AT_FDCWD, path, flags) ? -1 : real(path, flags, mode);
}
int openat(int dir, const char *path, int flags, ...) {
    REAL(openat); MODE
    return attacked_open(dir, path, flags) ? -1 : real(dir, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) {
    REAL(openat64); MODE
    return attacked_open(dir, path, flags) ? -1 : real(dir, path, flags, mode);
}
ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    return attacked_fd(fd) ? -1 : real(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    return attacked_fd(fd) ? -1 : real(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(writev);
    return attacked_fd(fd) ? -1 : real(fd, parts, number);
}
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *to_at, size_t size, unsigned flags) {
    REAL(copy_file_range);
    return attacked_fd(to) ? -1 : real(from, at, to, to_at, size, flags);
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    ssize_t (*real)(int, int, off64_t *, size_t) = dlsym(RTLD_NEXT, "sendfile64");
    return attacked_fd(to) ? -1 : real(to, from, at, size);
}
int fsync(int fd) {
    REAL(fsync);
    return attacked_fd(fd) ? -1 : real(fd);
}
int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    return attacked_fd(fd) ? -1 : real(fd, size);
}
int rename(const char *from, const char *to) {
    REAL(rename);
    return below(AT_FDCWD, to) && attacked(ON_NAME) ? -1 : real(from, to);
}
int renameat(int dir, const char *from, int to_dir, const char *to) {
    REAL(renameat);
    return below(to_dir, to) && attacked(ON_NAME) ? -1 : real(dir, from, to_dir, to);
}
int renameat2(int dir, const char *from, int to_dir, const char *to, unsigned flags) {
    REAL(renameat2);
    return below(to_dir, to) && attacked(ON_NAME) ? -1 : real(dir, from, to_dir, to, flags);
}
int unlink(const char *path) {
    REAL(unlink);
    return attacked_there(AT_FDCWD, path) ? -1 : real(path);
}
int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat);
    return attacked_there(dir, path) ? -1 : real(dir, path, flags);
}
int rmdir(const char *path) {
    REAL(rmdir);
    return attacked_there(AT_FDCWD, path) ? -1 : real(path);
}
int chmod(const char *path, mode_t mode) {
    REAL(chmod);
    return attacked_there(AT_FDCWD, path) ? -1 : real(path, mode);
}
int fchmod(int fd, mode_t mode) {
    REAL(fchmod);
    return attacked_there(fd, "") ? -1 : real(fd, mode);
}
int fchmodat(int dir, const char *path, mode_t mode, int flags) {
    REAL(fchmodat);
    return attacked_there(dir, path) ? -1 : real(dir, path, mode, flags);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    struct stat found;
    return below(AT_FDCWD, path) && stat(path, &found) && attacked(ON_NAME) ? -1 : real(path, mode);
}
