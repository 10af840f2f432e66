"""Keep the seccomp filters that crun compiles: compiling one is a third of its work.

crun leaves the filter of a running container in its state directory, and takes one that is compiled already by an
annotation. A kept one is used for the same rules, by the same crun, libraries (ld.so's cache) and kernel.
"""

from __future__ import annotations

import contextlib
import os

from pylayers.jsontext import dump
from pylayers.oci.digest import hex_of
from pylayers.store.file import read_file, remove_file, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from _typeshed import StrPath

ANNOTATION = "run.oci.seccomp_bpf_data"
COMPILED = "seccomp.bpf"  # crun's name for it
FILTERS = "runtimes"  # the data root's folder for them
SUFFIX = ".bpf"
KEPT_LIMIT = 32
INSTRUCTION_BYTES = 8
LIMIT_BYTES = 4096 * INSTRUCTION_BYTES  # the kernel's
HEX_LENGTH = 64


class KeptFilter:
    """The filter of one set of rules (`linux.seccomp`), in a folder of such; it may have to be compiled yet."""

    def __init__(self, folder: StrPath, runtime: str, rules: dict[str, Any]) -> None:
        key = [rules, *map(_identify, (runtime, "/etc/ld.so.cache")), *os.uname()[2:]]
        self.rules = rules
        self._folder = folder
        self._path = f"{folder}/{hex_of(dump(key).encode())}{SUFFIX}"
        self._annotation = self._read()

    @property
    def is_kept(self) -> bool:
        """Tell whether it is there."""
        return bool(self._annotation)

    def lend(self, config: dict[str, Any]) -> None:
        """Put the filter, if it is there, into a configuration in place of these rules' syscalls.

        Those are 60 KB to parse. Where the filter were not taken, nothing would be allowed.
        """
        if self._annotation:
            config.setdefault("annotations", {})[ANNOTATION] = self._annotation
            config["linux"]["seccomp"] = {name: value for name, value in self.rules.items() if name != "syscalls"}

    def _read(self) -> str:
        try:
            kept = read_file(self._path)
        except FileNotFoundError:
            return ""
        content = kept[HEX_LENGTH:]
        if hex_of(content).encode() != kept[:HEX_LENGTH]:  # a power cut
            return ""
        import binascii

        return binascii.b2a_base64(content, newline=False).decode()

    def keep(self, state: StrPath) -> bool:
        """Keep what the state directory of a container that was just started has, for those to come, if it has any.

        A container may have ended again by then, and on a full disk nothing is kept.
        """
        with contextlib.suppress(OSError):
            with open(f"{state}/{COMPILED}", "rb") as file:
                content = file.read(LIMIT_BYTES + 1)
            if not content or len(content) % INSTRUCTION_BYTES or len(content) > LIMIT_BYTES:
                return False
            kept = [name for name in os.listdir(self._folder) if name.endswith(SUFFIX)]
            if len(kept) >= KEPT_LIMIT:
                for name in kept:
                    remove_file(f"{self._folder}/{name}", durable=False)
            write_file(self._path, hex_of(content).encode() + content, durable=False)
            return True
        return False


def find_filter(folder: StrPath, runtime_name: str, runtime: str, rules: dict[str, Any] | None) -> KeptFilter | None:
    """Return the filter of some rules; None where there are none, or the runtime takes no compiled one."""
    if runtime_name != "crun" or not rules or not os.path.isdir(folder):
        return None
    return KeptFilter(folder, runtime, rules)


def _identify(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
