"""Run `zfs`, one command at a time on this machine, and name what it complains about.

Two implementations answer: OpenZFS in the kernel, and zfs-fuse, a daemon. The daemon hangs for good when two commands
meet in it, from whichever data roots they come, so all of them run under one flock. It cannot be asked by mount(2):
it mounts a dataset itself, where the dataset's `mountpoint` says.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pylayers.errors import (
    Conflict,
    DriverError,
    InvalidInput,
    NoSpace,
    PermissionDenied,
    PylayersError,
    Unsupported,
    translate_os_error,
)
from pylayers.snapshot.backing import find_mount

FSNAME_VARIABLE = "PYLAYERS_ZFS_FSNAME"
ZFS_TYPES = ("zfs", "fuse.zfs")
LOCK_FILE = Path("/run/pylayers-zfs.lock")
COMMAND_TIMEOUT_SECONDS = 60.0
LOCK_TIMEOUT_SECONDS = 180.0
POLL_SECONDS = 0.005
MISSING = "does not exist"

# What the tools of both implementations say: the first that occurs decides.
COMPLAINTS: tuple[tuple[tuple[str, ...], type[PylayersError], str], ...] = (
    (("zfs-fuse daemon is running",), Unsupported, "start the zfs-fuse service, or load OpenZFS: modprobe zfs"),
    (
        ("modules are not loaded", "modules cannot be auto-loaded", "Failed to load ZFS module", "open /dev/zfs",
         "/dev/zfs and /proc/self/mounts are required"),
        Unsupported, "load the module: modprobe zfs",
    ),
    (("out of space", "No space left", "quota exceeded"), NoSpace,
     "free space with: pylayers system prune; see what the pool holds with: zfs list -o space"),
    (("less than current used",), InvalidInput, "see what it takes with: zfs list -o space"),
    (("is busy", "resource busy", "already mounted", "still in use"), Conflict, "stop what uses it, or unmount it"),
    (("dependent clones", "has children"), Conflict, "remove what was cloned from it first: zfs list -o name,origin"),
    (("ermission denied", "must be superuser", "must be root", "run as root", "peration not permitted"),
     PermissionDenied, "run as root"),
    (("suspended",), DriverError, "see what is wrong with the pool: zpool status -x"),
    ((MISSING, "no such pool"), DriverError, "see what there is: zfs list; what can be imported: zpool import"),
)  # fmt: skip


def find_dataset(directory: Path) -> str:
    """Name the dataset for the datasets of a data root: the one in PYLAYERS_ZFS_FSNAME, else what holds a directory.

    Raises DriverError when the directory is on something else, InvalidInput for what is no dataset's name.
    """
    named = os.environ.get(FSNAME_VARIABLE, "")
    if named:
        parts = named.split("/")
        if named.startswith("-") or any(part in ("", ".", "..") for part in parts) or set(named) & set("@#%,\n\t"):
            raise InvalidInput(f"{FSNAME_VARIABLE} is not the name of a dataset: {named!r}", hint="zfs list -o name")
        return named
    kind, source = find_mount(directory)
    if kind not in ZFS_TYPES:
        raise DriverError(
            f"{directory} is on {kind}, not on zfs",
            hint=f"put the data root on a dataset with --root, or name a dataset in {FSNAME_VARIABLE}",
        )
    return source


def uses_fuse() -> bool:
    """Tell whether zfs-fuse has to answer: the running kernel has no OpenZFS."""
    return not (os.path.exists("/dev/zfs") and "zfs" in Path("/proc/filesystems").read_text().split())


def dataset_exists(dataset: str) -> bool:
    """Tell whether a dataset exists. Raises what `run_zfs` does when that cannot be told."""
    try:
        run_zfs("list", "-H", "-o", "name", dataset)
    except DriverError as error:
        if MISSING in str(error):
            return False
        raise
    return True


def read_property(dataset: str, name: str) -> str:
    """Read a property, sizes as plain numbers of bytes."""
    return run_zfs("get", "-Hp", "-o", "value", name, dataset).rstrip("\n")


def find_program() -> str:
    """Find `zfs` on the PATH. Raises Unsupported."""
    path = shutil.which("zfs")
    if path is None:
        raise Unsupported("no zfs program on the PATH", hint="install OpenZFS's tools (Debian: zfsutils-linux)")
    return path


def run_zfs(*arguments: str) -> str:
    """Run one `zfs` command under the lock and return what it prints. Raises a named error with its words."""
    path = find_program()
    doing = f"zfs {' '.join(arguments)}"
    with _locked() as lock:
        try:
            # The lock is the child's too: were this process killed, nobody else may start before that one ends.
            process = subprocess.Popen(
                [path, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"}, pass_fds=(lock,), text=True, errors="surrogateescape",
            )  # fmt: skip
        except OSError as error:
            raise translate_os_error(error, doing) from error
        said, complaint = _await(process, doing)
    if process.returncode:
        raise explain_failure(doing, complaint.strip() or said.strip() or f"exit status {process.returncode}")
    return said


def explain_failure(doing: str, words: str) -> PylayersError:
    """Turn the tool's complaint into the error that a user should see."""
    message = f"{doing}: {' '.join(words.split())}"
    for fragments, kind, hint in COMPLAINTS:
        if any(fragment in words for fragment in fragments):
            return kind(message, hint=hint)
    return DriverError(message, hint="see what is wrong with the pool: zpool status -x")


def _await(process: subprocess.Popen[str], doing: str) -> tuple[str, str]:
    try:
        return process.communicate(timeout=COMMAND_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)  # one that hangs in the kernel stays, and keeps the lock
        raise DriverError(
            f"{doing}: no answer for {COMMAND_TIMEOUT_SECONDS:.0f} s",
            hint="see what is wrong with the pool: zpool status -x",
        ) from error
    except BaseException:
        process.kill()
        process.wait()
        raise


@contextmanager
def _locked() -> Iterator[int]:
    """Wait for the machine's lock and hold it for the length of a block. Raises DriverError when it can't be had."""
    try:
        descriptor = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise translate_os_error(error, "open the lock of zfs commands") from error
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DriverError(
                        f"another zfs command has held {LOCK_FILE} for {LOCK_TIMEOUT_SECONDS:.0f} s",
                        hint=f"see which with: fuser -v {LOCK_FILE}",
                    ) from None
                time.sleep(POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)
