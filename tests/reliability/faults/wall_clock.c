/* Preloaded into a process, this moves its wall clock by as many seconds as a file holds (a double; WALL_CLOCK names
   it), and leaves the monotonic clock alone. Waits until a moment of the wall clock follow it, as in the kernel: they
   may end early, which their callers must bear anyway, and then look at the clock again. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SLICE 0.05 /* seconds that a wait lasts at most before the clock is looked at again */

static const volatile double *offset;

__attribute__((constructor)) static void open_clock(void) {
    const char *path = getenv("WALL_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *found = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (found != MAP_FAILED) offset = found;
}

static double moved(void) { return offset ? *offset : 0; }

static void add(struct timespec *t, double seconds) {
    long long whole = (long long)floor(seconds);
    t->tv_sec += whole;
    t->tv_nsec += (long)((seconds - whole) * 1e9);
    if (t->tv_nsec >= 1000000000) t->tv_nsec -= 1000000000, t->tv_sec++;
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    int failed = syscall(SYS_clock_gettime, clock, t);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) add(t, moved());
    return failed;
}

int gettimeofday(struct timeval *t, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec, t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}

/* Whether the moment has come on the moved clock; if not, `next` is that of the true one to wait for. */
static int has_come(const struct timespec *moment, struct timespec *next) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, next);
    now = *next;
    add(&now, moved());
    double left = (double)(moment->tv_sec - now.tv_sec) + (moment->tv_nsec - now.tv_nsec) / 1e9;
    add(next, left < 0 ? 0 : left < SLICE ? left : SLICE);
    return left <= 0;
}

static void *find(const char *name, const char *version) {
    void *found = dlvsym(RTLD_NEXT, name, version);
    return found ? found : dlsym(RTLD_NEXT, name);
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *moment) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real) real = find("pthread_cond_timedwait", "GLIBC_2.3.2");
    if (moment->tv_sec < 1000000000) return real(condition, mutex, moment); /* of the monotonic clock */
    struct timespec next;
    int come = has_come(moment, &next), result = real(condition, mutex, &next);
    return result == ETIMEDOUT && !come && !has_come(moment, &next) ? 0 : result;
}

int sem_timedwait(sem_t *semaphore, const struct timespec *moment) {
    static int (*real)(sem_t *, const struct timespec *);
    if (!real) real = find("sem_timedwait", "GLIBC_2.2.5");
    for (;;) {
        struct timespec next;
        int come = has_come(moment, &next), result = real(semaphore, &next);
        if (!result || errno != ETIMEDOUT || come) return result;
    }
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *moment) {
    static int (*real)(pthread_mutex_t *, const struct timespec *);
    if (!real) real = find("pthread_mutex_timedlock", "GLIBC_2.2.5");
    for (;;) {
        struct timespec next;
        int come = has_come(moment, &next), result = real(mutex, &next);
        if (result != ETIMEDOUT || come) return result;
    }
}
