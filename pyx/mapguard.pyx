# cython: language_level=3, autotestdict=False
"""Read mapped files that others may shorten: zeros and a mark in place of SIGBUS.

The handler runs in the thread that read, and does nothing but compare addresses, set a mark and call mmap: all of it
is safe there. Guards are entered and left with the GIL held; the handler takes no lock.
"""
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport errno
from libc.stdint cimport uintptr_t
from libc.string cimport memset, strerror

cdef extern from *:
    """
    #include <errno.h>
    #include <signal.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <unistd.h>
    enum { GUARDS = 64 };
    static struct { uintptr_t start, end; int broken; } guards[GUARDS];   /* start 0: free */
    static struct sigaction before;
    static int installed;

    static void on_bus(int number, siginfo_t *told, void *context) {
        uintptr_t at = (uintptr_t) told->si_addr, page = at & ~(uintptr_t) (getpagesize() - 1);
        int saved = errno, i;
        for (i = 0; i < GUARDS; i++) {
            uintptr_t start = __atomic_load_n(&guards[i].start, __ATOMIC_ACQUIRE);
            if (!start || at < start || at >= guards[i].end) continue;
            /* All that follows is beyond the file's end too. */
            if (mmap((void *) page, guards[i].end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
                == MAP_FAILED) break;
            __atomic_store_n(&guards[i].broken, 1, __ATOMIC_RELEASE);
            errno = saved;
            return;
        }
        errno = saved;
        if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(number, told, context);
        else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) before.sa_handler(number);
        else sigaction(number, &before, NULL);   /* the read is tried again, and ends the process */
    }
    static int install(void) {
        struct sigaction mine = {0};
        if (installed) return 0;
        mine.sa_sigaction = on_bus;
        mine.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigemptyset(&mine.sa_mask);
        if (sigaction(SIGBUS, &mine, &before) != 0) return -1;
        installed = 1;
        return 0;
    }
    /* Put the handler back that was there before, unless somebody has set another one since. */
    static void uninstall(void) {
        struct sigaction now;
        int i;
        for (i = 0; i < GUARDS; i++) if (guards[i].start) return;
        if (installed && sigaction(SIGBUS, NULL, &now) == 0 && now.sa_flags & SA_SIGINFO
            && now.sa_sigaction == on_bus && sigaction(SIGBUS, &before, NULL) == 0) installed = 0;
    }
    static int enter_guard(uintptr_t start, uintptr_t end) {
        int i;
        for (i = 0; i < GUARDS && guards[i].start; i++) ;
        if (i == GUARDS) { errno = EMFILE; return -1; }
        if (install() != 0) return -1;
        guards[i].end = end;
        guards[i].broken = 0;
        __atomic_store_n(&guards[i].start, start, __ATOMIC_RELEASE);
        return i;
    }
    static int is_broken(int i) { return __atomic_load_n(&guards[i].broken, __ATOMIC_ACQUIRE); }
    static void leave_guard(int i) {
        __atomic_store_n(&guards[i].start, 0, __ATOMIC_RELEASE);
        uninstall();
    }
    """
    int getpagesize() nogil
    int enter_guard(uintptr_t start, uintptr_t end) nogil
    bint is_broken(int place) nogil
    void leave_guard(int place) nogil


cdef class MapGuard:
    """One guarded mapping. See mapguard.pyi."""
    cdef Py_buffer view
    cdef int place
    cdef bint was_broken

    def __cinit__(self, memoryview mapped not None):
        cdef uintptr_t start, end, page = <uintptr_t>getpagesize() - 1
        memset(&self.view, 0, sizeof(Py_buffer))
        self.place = -1
        PyObject_GetBuffer(mapped, &self.view, PyBUF_SIMPLE)
        if self.view.len == 0:
            raise ValueError("there is nothing to guard")
        start = <uintptr_t>self.view.buf
        end = (start + <uintptr_t>self.view.len + page) & ~page
        if start & page:
            raise ValueError("a mapping begins with a page")
        self.place = enter_guard(start, end)
        if self.place < 0:
            raise OSError(errno, strerror(errno).decode())

    @property
    def broken(self):
        return self.was_broken or (self.place >= 0 and is_broken(self.place))

    def close(self):
        """Guard no more."""
        if self.place >= 0:
            self.was_broken = is_broken(self.place)
            leave_guard(self.place)
            self.place = -1
        PyBuffer_Release(&self.view)

    def __dealloc__(self):
        if self.place >= 0:
            leave_guard(self.place)
        PyBuffer_Release(&self.view)
