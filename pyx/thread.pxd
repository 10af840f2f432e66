# cython: language_level=3
"""POSIX threads and the atomic counters that go with them (declarations only)."""

cdef extern from *:
    """
    #include <pthread.h>
    #define count_down(counter) __atomic_sub_fetch(counter, 1, __ATOMIC_ACQ_REL)
    #define count_up(counter) __atomic_add_fetch(counter, 1, __ATOMIC_ACQ_REL)
    """
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t* thread, const void* attributes, void* (*run)(void*) noexcept nogil, void* given) nogil
    int pthread_join(pthread_t thread, void** result) nogil
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
