# cython: language_level=3
"""POSIX threads and the atomic counters that go with them (declarations and small inline parts)."""

cdef extern from *:
    """
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <sys/stat.h>
    #include <time.h>
    /* Wait on a condition for some milliseconds at most. */
    static inline int wait_for(pthread_cond_t *wake, pthread_mutex_t *lock, int milliseconds) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += milliseconds * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        return pthread_cond_timedwait(wake, lock, &until);
    }
    /* Start a thread that takes no signal: they are for the interpreter's own threads. */
    static inline int start_quiet(pthread_t *thread, void *(*run)(void *), void *given) {
        sigset_t every, before;
        int failure;
        sigfillset(&every);
        pthread_sigmask(SIG_SETMASK, &every, &before);
        failure = pthread_create(thread, NULL, run, given);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return failure;
    }
    /* Count the processors that the calling thread may run on. */
    static inline int count_processors(void) {
        cpu_set_t mine;
        return sched_getaffinity(0, sizeof(mine), &mine) == 0 ? CPU_COUNT(&mine) : 1;
    }
    #define count_down(counter) __atomic_sub_fetch(counter, 1, __ATOMIC_ACQ_REL)
    #define count_up(counter) __atomic_add_fetch(counter, 1, __ATOMIC_ACQ_REL)
    #define load_int(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
    #define store_int(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
    """
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t* thread, const void* attributes, void* (*run)(void*) noexcept nogil, void* given) nogil
    int pthread_join(pthread_t thread, void** result) nogil
    int start_quiet(pthread_t* thread, void* (*run)(void*) noexcept nogil, void* given) nogil
    int count_processors() nogil
    int wait_for(pthread_cond_t* wake, pthread_mutex_t* lock, int milliseconds) nogil
    int CLONE_FS
    int unshare(int flags) nogil
    unsigned int umask(unsigned int mask) nogil
    int pthread_mutex_init(pthread_mutex_t* lock, const void* attributes) nogil
    int pthread_mutex_lock(pthread_mutex_t* lock) nogil
    int pthread_mutex_unlock(pthread_mutex_t* lock) nogil
    int pthread_mutex_destroy(pthread_mutex_t* lock) nogil
    int pthread_cond_init(pthread_cond_t* wake, const void* attributes) nogil
    int pthread_cond_wait(pthread_cond_t* wake, pthread_mutex_t* lock) nogil
    int pthread_cond_signal(pthread_cond_t* wake) nogil
    int pthread_cond_broadcast(pthread_cond_t* wake) nogil
    int pthread_cond_destroy(pthread_cond_t* wake) nogil
    int count_down(int* counter) nogil
    int count_up(int* counter) nogil
    int load_int(const int* place) nogil
    void store_int(int* place, int value) nogil
