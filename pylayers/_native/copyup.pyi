def copy_file(source_fd: int, target_fd: int, size_bytes: int) -> str:
    """Copy the data of an open file: reflink, else copy_file_range, else a sparse-aware read/write loop.

    Returns the way taken: "reflink", "copy_file_range" or "read_write". Holes stay holes. Releases the GIL.
    """

def copy_range(source_fd: int, source_offset: int, target_fd: int, target_offset: int, size_bytes: int) -> None:
    """Copy one range between open files within the kernel where it can."""

def copy_tree(
    source_fd: int,
    target_fd: int,
    threads: int = 0,
    owner: tuple[int, int] | None = None,
    replace: bool = False,
    top_metadata: bool = True,
) -> tuple[int, int]:
    """Copy everything below one directory into another, existing one; return (entries, bytes of data).

    Keeps owner, mode, times, xattrs (ACLs and capabilities with them), hard links inside the tree, holes, devices,
    fifos, sockets, symlinks; with top_metadata, the top directory's own as well. Directories that are there already
    are merged, anything else in the way is a FileExistsError. Never follows symlinks. threads=0: one a core, at most
    8. owner=(uid, gid): everything becomes theirs. replace=True: what is in the way of anything but a directory goes,
    unless it is a directory itself. Releases the GIL. Raises OSError with filename; what was copied so far stays, but
    no entry that isn't whole: only directories may lack entries and metadata.
    """
