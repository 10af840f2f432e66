"""Turn a docker/containers seccomp profile into the OCI `linux.seccomp` object."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection

from pylayers._native import sysmount
from pylayers.container.runtime import kernel_version
from pylayers.errors import InvalidInput, NotFound, translate_os_error
from pylayers.jsontext import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROFILES = ("/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json")
LIMIT_BYTES = 4 << 20
X32 = "SCMP_ARCH_X32"

# uname -m -> (the name profiles use for conditions, libseccomp's name)
MACHINES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "i686": ("386", "SCMP_ARCH_X86"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "mips64": ("mips64", "SCMP_ARCH_MIPS64"),
    "loongarch64": ("loong64", "SCMP_ARCH_LOONGARCH64"),
}


def find_profile(choice: str) -> str | None:
    """Return the profile's path for "default" (None when none is installed), "unconfined" (None) or a path itself."""
    if choice == "unconfined":
        return None
    if choice != "default":
        return choice
    return next((path for path in PROFILES if os.path.exists(path)), None)


def load_seccomp(choice: str, capabilities: Collection[str]) -> dict[str, Any] | None:
    """Return the OCI seccomp object for a process with these capabilities, or None to run without a filter.

    Converted profiles are kept in memory until the file changes. Callers must not change what is returned.
    Raises NotFound, InvalidInput.
    """
    path = find_profile(choice)
    if path is None:
        return None
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise NotFound(f"seccomp profile {path} does not exist") from None
    machine, kernel = os.uname().machine, kernel_version()
    return _convert_file(
        path, status.st_mtime_ns, status.st_size, frozenset(capabilities), machine, kernel, _missing_abis(machine)
    )


@functools.cache
def _missing_abis(machine: str) -> frozenset[str]:
    """Return the architectures that profiles add to this machine's own and that its kernel was built without.

    The runtime takes 6 ms (of 33) to compile the rules of each, at every start.
    """
    return frozenset((X32,)) if machine == "x86_64" and not sysmount.has_x32() else frozenset()


@functools.lru_cache(maxsize=8)
def _convert_file(
    path: str,
    _mtime_ns: int,
    _size: int,
    capabilities: frozenset[str],
    machine: str,
    kernel: tuple[int, ...],
    missing: frozenset[str],
) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            profile = load(file.read(LIMIT_BYTES))
        return convert(profile, capabilities, machine, kernel, missing)
    except OSError as error:
        raise translate_os_error(error, "read the seccomp profile") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path} is not a seccomp profile: {error!r}") from error


def convert(
    profile: dict[str, Any],
    capabilities: Collection[str],
    machine: str,
    kernel: tuple[int, ...],
    missing: Collection[str] = (),
) -> dict[str, Any]:
    """Select the rules that apply to a machine, kernel version and set of capabilities.

    missing are architectures that this kernel doesn't have: left out of those that the machine's own brings along, kept
    where the profile lists them itself.
    """
    architecture, native = MACHINES.get(machine, (machine, ""))
    converted: dict[str, Any] = {"defaultAction": profile["defaultAction"]}
    if profile.get("defaultErrnoRet") is not None:
        converted["defaultErrnoRet"] = profile["defaultErrnoRet"]
    for entry in profile.get("archMap") or ():
        if entry["architecture"] == native:
            added = entry.get("subArchitectures") or ()
            converted["architectures"] = [native, *(one for one in added if one not in missing)]
    if profile.get("architectures"):
        converted["architectures"] = list(profile["architectures"])
    if profile.get("flags"):
        converted["flags"] = list(profile["flags"])
    converted["syscalls"] = [
        _rule(rule) for rule in profile.get("syscalls") or () if _applies(rule, architecture, capabilities, kernel)
    ]
    return converted


def _applies(rule: dict[str, Any], architecture: str, capabilities: Collection[str], kernel: tuple[int, ...]) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if includes.get("arches") and architecture not in includes["arches"]:
        return False
    if architecture in (excludes.get("arches") or ()):
        return False
    if any(name not in capabilities for name in includes.get("caps") or ()):
        return False
    if any(name in capabilities for name in excludes.get("caps") or ()):
        return False
    least, first_excluded = includes.get("minKernel"), excludes.get("minKernel")
    if least and kernel < _version(least):
        return False
    return not (first_excluded and kernel >= _version(first_excluded))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    converted: dict[str, Any] = {"names": rule.get("names") or [rule["name"]], "action": rule["action"]}
    if rule.get("errnoRet") is not None:
        converted["errnoRet"] = rule["errnoRet"]
    if rule.get("args"):
        converted["args"] = [
            {key: argument[key] for key in ("index", "value", "valueTwo", "op") if key in argument}
            for argument in rule["args"]
        ]
    return converted
