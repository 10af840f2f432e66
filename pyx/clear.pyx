# cython: language_level=3
"""Remove whole trees: by descriptor, never through a symlink, with memory for the depth alone."""
from libc.errno cimport ENOENT, ENOTEMPTY
from libc.string cimport strerror

from cleartree cimport remove_entry

cdef extern from "<fcntl.h>":
    int AT_FDCWD

cdef enum:
    TRY_LIMIT = 1000  # others may remove the same tree; each try makes it smaller


def remove_tree(bytes path not None):
    """Remove a file, or a directory with all that is below it; what is not there is no error.

    Another process may be removing the same tree. The last component may be a symlink, which goes itself. Releases the
    GIL. Raises OSError with filename: what was removed before stays removed.
    """
    cdef const char* name = path
    cdef int failure = ENOENT, tries = 0
    if b"\0" in path:
        raise ValueError("a path holds no NUL byte")
    with nogil:
        # A directory that goes, or is emptied, while we are in it has been taken by another remover: begin again.
        while (failure == ENOENT or failure == ENOTEMPTY) and tries < TRY_LIMIT:
            failure = remove_entry(AT_FDCWD, name)
            tries += 1
    if failure:
        raise OSError(failure, strerror(failure).decode(), path)
