_Buffer = bytes | bytearray | memoryview

WHITEOUT_APPLY: int  # onto a full tree: a whiteout removes its target, opaque empties the directory
WHITEOUT_OVERLAY: int  # into an overlay upper: char device 0:0, trusted.overlay.opaque=y
WHITEOUT_USERXATTR: int  # the same with user.overlay.opaque

NO_OWNER: int  # flag: everything stays the caller's own (no chown)
NO_DEVICES: int  # flag: block and character devices are left out (what is in their way goes)

def unpack(root_fd: int, tar_fd: int, records: _Buffer, heap: _Buffer, whiteouts: int = 0, flags: int = 0) -> int:
    """Create a layer's rows below root_fd from its tar and return the bytes of file data written.

    Every path is resolved beneath root_fd without following symlinks (openat2 RESOLVE_BENEATH|NO_SYMLINKS, or
    component by component on older kernels). Replaces what is in the way (a directory over a directory keeps its
    content and takes the new metadata, IMPLICIT rows change nothing of a directory that exists). Sets owner, mode,
    xattrs, capabilities, then times (directories last). Hard links are linked, devices made, sparse files keep their
    holes. Large files share the tar's blocks where the file system can, else their data is written past the page cache,
    where it can (docs/decisions/0009). In an overlay upper, overlayfs's own xattr names are escaped. flags: NO_OWNER,
    NO_DEVICES. Releases the GIL. Raises OSError with filename (what was made so far stays), ValueError for a table that
    is not a layer's. Needs /proc for xattrs of what cannot be opened.
    """
