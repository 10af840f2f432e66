def remove_tree(path: bytes) -> None:
    """Remove a file, or a directory with all that is below it; what is not there is no error.

    Another process may be removing the same tree. The last component may be a symlink, which goes itself. Releases the
    GIL. Raises OSError with filename: what was removed before stays removed.
    """
