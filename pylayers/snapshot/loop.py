"""Loop devices for files, which the kernel frees by itself with their last user."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

# linux/loop.h
LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
# struct loop_config: fd, block size, struct loop_info64 (whose flags lie at byte 52), eight reserved words
CONFIG_BYTES = 8 + 232 + 64
FLAGS_OFFSET = 8 + 52
TRIES = 64


def attach_loop(path: str, *, writable: bool = False) -> tuple[int, str]:
    """Attach a file to a free loop device; return a descriptor of the device and its name.

    The device is freed when the descriptor and everything mounted from it are gone. Raises OSError.
    """
    access = os.O_RDWR if writable else os.O_RDONLY
    backing = os.open(path, access | os.O_CLOEXEC)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(TRIES):
                name = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
                device = os.open(name, access | os.O_CLOEXEC)
                try:
                    config = bytearray(CONFIG_BYTES)
                    struct.pack_into("<II", config, 0, backing, 0)
                    flags = LO_FLAGS_AUTOCLEAR | (0 if writable else LO_FLAGS_READ_ONLY)
                    struct.pack_into("<I", config, FLAGS_OFFSET, flags)
                    fcntl.ioctl(device, LOOP_CONFIGURE, bytes(config))
                    return device, name
                except OSError as error:
                    os.close(device)
                    if error.errno != errno.EBUSY:  # somebody else was faster
                        raise
            raise OSError(errno.EBUSY, "no free loop device", path)
        finally:
            os.close(control)
    finally:
        os.close(backing)
