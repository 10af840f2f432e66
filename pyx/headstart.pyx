# cython: language_level=3, autotestdict=False
"""Have the kernel's cgroup lock waited for beside what else a container's start does: see pylayers.container.grace.

The thread is the C library's alone: it holds no lock, calls nothing of the interpreter's and takes no signal, so a fork
beside it copies nothing that somebody holds. A forked child has none, and begins its own.
"""
from libc.string cimport strerror
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close, getpid, write

from thread cimport load_int, pthread_t, start_quiet, store_int

cdef extern from *:
    """
    static long long hold_until_ns;
    #define load_ns(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
    #define store_ns(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
    """
    long long hold_until_ns
    long long load_ns(const long long* place) nogil
    void store_ns(long long* place, long long value) nogil
    int pthread_detach(pthread_t thread) nogil

cdef extern from "<time.h>" nogil:
    int nanosleep(const timespec* wanted, timespec* left)

cdef struct Hold:
    int descriptor
    long long interval_ns

cdef Hold held  # written before the thread that reads it begins, and by nobody while it runs
cdef int holder = 0  # the process whose thread runs


cdef inline long long now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * <long long>1000000000 + now.tv_nsec


cdef void* hold(void* given) noexcept nogil:
    cdef Hold* mine = <Hold*>given
    cdef timespec pause
    pause.tv_sec = mine.interval_ns // 1000000000
    pause.tv_nsec = mine.interval_ns % 1000000000
    while now_ns() < load_ns(&hold_until_ns):
        if write(mine.descriptor, b"0", 1) != 1:  # a cgroup2 that may hold no processes
            break
        nanosleep(&pause, NULL)
    close(mine.descriptor)
    store_int(&holder, 0)
    return NULL


def rewrite(int descriptor, long long interval_ns, long long lasting_ns):
    """Write "0" to a descriptor again and again from a thread; a thread that does so already goes on for longer."""
    cdef pthread_t thread
    cdef int failure
    if interval_ns <= 0 or lasting_ns < 0:
        close(descriptor)
        raise ValueError("an interval is positive, and a time isn't negative")
    store_ns(&hold_until_ns, now_ns() + lasting_ns)
    if load_int(&holder) == getpid():
        close(descriptor)
        return
    held.descriptor = descriptor
    held.interval_ns = interval_ns
    store_int(&holder, getpid())
    failure = start_quiet(&thread, hold, &held)
    if failure != 0:
        store_int(&holder, 0)
        close(descriptor)
        raise OSError(failure, strerror(failure).decode(), "pthread_create")
    pthread_detach(thread)


def is_rewriting():
    """Tell whether this process has such a thread."""
    return load_int(&holder) == getpid()
