"""Build the OCI runtime configuration (config.json) of a container, with docker's defaults."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from pylayers.container.defaults import (
    ALL_CAPABILITIES,
    DEFAULT_CAPABILITIES,
    MASKED_PATHS,
    READONLY_PATHS,
    default_mounts,
    device_rules,
)
from pylayers.container.isolation import DEFAULT_PATH, ContainerMount, Device, Isolation, Process
from pylayers.container.runtime import check_network, held_capabilities
from pylayers.container.seccomp import load_seccomp
from pylayers.container.user import User, resolve_user
from pylayers.errors import ContainerError, InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OCI_VERSION = "1.0.2"
LEAST_MEMORY_BYTES = 6 << 20  # docker's
CPU_PERIOD_US = 100_000


def build_config(
    process: Process,
    isolation: Isolation,
    mounts: Sequence[ContainerMount],
    *,
    root_fd: int,
    container_id: str,
    root_path: str = "rootfs",
    cgroup_limits: bool = True,
) -> dict[str, Any]:
    """Return config.json as a dict. root_fd is the mounted root file system, in which the user is looked up.

    Raises InvalidInput, ContainerError (unknown user, missing device or source), NotFound (seccomp profile).
    """
    check_network(isolation.network)
    capabilities = choose_capabilities(isolation, device_rules=cgroup_limits)
    config: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "root": {"path": root_path, "readonly": isolation.readonly},
        "hostname": isolation.hostname or container_id[:12],
        "process": build_process(process, isolation, resolve_user(root_fd, process.user), capabilities),
        "mounts": build_mounts(isolation, mounts, cgroup=cgroup_limits),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts")],
            "cgroupsPath": f"/pylayers/{container_id}",
            "resources": _resources(isolation, cgroup_limits),
        },
    }
    linux = config["linux"]
    if isolation.network == "none":
        linux["namespaces"].append({"type": "network"})
    if not cgroup_limits:
        linux.pop("cgroupsPath")
    devices, rules = _devices(isolation)
    if devices:
        linux["devices"] = devices
        linux["resources"].setdefault("devices", []).extend(rules)
    if not isolation.privileged:
        linux["maskedPaths"] = list(MASKED_PATHS)
        linux["readonlyPaths"] = list(READONLY_PATHS)
        seccomp = load_rules(isolation, cgroup_limits=cgroup_limits)
        if seccomp is not None:
            linux["seccomp"] = seccomp
    propagations = {mount.propagation for mount in mounts if mount.type == "bind"}
    if propagations & {"shared", "rshared"}:
        linux["rootfsPropagation"] = "shared"
    elif propagations & {"slave", "rslave"}:
        linux["rootfsPropagation"] = "slave"
    return config


def load_rules(isolation: Isolation, *, cgroup_limits: bool) -> dict[str, Any] | None:
    """Return what build_config takes of a seccomp profile, which is then kept. Raises NotFound, InvalidInput."""
    if isolation.privileged:
        return None
    return load_seccomp(isolation.seccomp, choose_capabilities(isolation, device_rules=cgroup_limits))


def forbids_devices(isolation: Isolation, *, cgroup_limits: bool) -> bool:
    """Tell whether mounts have to keep device files shut, as no cgroup has rules for devices."""
    return not cgroup_limits and not isolation.privileged


def build_process(process: Process, isolation: Isolation, user: User, capabilities: Sequence[str]) -> dict[str, Any]:
    """Return the OCI process object; runtimes take the same for exec."""
    if not process.arguments:
        raise ContainerError("no command specified", hint="give a command, or set CMD or ENTRYPOINT in the image")
    if not process.working_directory.startswith("/"):
        raise InvalidInput(
            f"the working directory '{process.working_directory}' is invalid, it needs to be an absolute path"
        )
    # The group itself is among the additional ones too, as in docker: setgroups(2) gives back no other right.
    groups = list(dict.fromkeys((*user.groups, user.gid)))
    account: dict[str, Any] = {"uid": user.uid, "gid": user.gid, "additionalGids": groups}
    # As docker: only root has the capabilities at once, another user may gain them by executing a file that has them.
    sets = ("bounding", "effective", "permitted") if user.uid == 0 else ("bounding",)
    built: dict[str, Any] = {
        "terminal": process.terminal,
        "user": account,
        "args": list(process.arguments),
        "env": build_environment(process, user),
        "cwd": process.working_directory,
        "capabilities": {name: list(capabilities) for name in sets},
        "noNewPrivileges": isolation.no_new_privileges,
    }
    if isolation.limits:
        built["rlimits"] = [
            {"type": f"RLIMIT_{limit.name.upper()}", "soft": _limit(limit.soft), "hard": _limit(limit.hard)}
            for limit in isolation.limits
        ]
    return built


def build_environment(process: Process, user: User) -> list[str]:
    """Add PATH, HOME and TERM where they are missing; a later setting of a name replaces an earlier one."""
    values: dict[str, str] = {}
    for setting in process.environment:
        name, equals, value = setting.partition("=")
        if not name or not equals or "\0" in setting:
            raise InvalidInput(f"invalid environment variable: {setting!r}")
        values[name] = value
    path_name, _, path = DEFAULT_PATH.partition("=")
    values.setdefault(path_name, path)
    values.setdefault("HOME", user.home)
    if process.terminal:
        values.setdefault("TERM", "xterm")
    return [f"{name}={value}" for name, value in values.items()]


def choose_capabilities(isolation: Isolation, *, device_rules: bool = True) -> list[str]:
    """Apply --cap-add, --cap-drop and --privileged to docker's set, in the kernel's order. Raises InvalidInput.

    Without a cgroup's rules for devices nobody but a privileged container may make one, as any disk would be open then.
    """
    held = held_capabilities()
    every = [name for number, name in enumerate(ALL_CAPABILITIES) if held >> number & 1]
    if isolation.privileged:
        return every
    added = _capability_names(isolation.capabilities_added)
    dropped = _capability_names(isolation.capabilities_dropped)
    if not device_rules:
        if "CAP_MKNOD" in added:
            raise ContainerError("--cap-add MKNOD: this runtime cannot keep rules for devices on this machine")
        dropped.add("CAP_MKNOD")
    chosen = set(DEFAULT_CAPABILITIES)
    if "ALL" in added:
        chosen.update(every)
    if "ALL" in dropped:
        chosen.clear() if "ALL" not in added else None
    chosen -= dropped
    missing = sorted(name for name in added - {"ALL"} if name not in every)
    if missing:
        raise ContainerError(f"this process doesn't hold {', '.join(missing)}, so it cannot give it to a container")
    chosen |= added - {"ALL"}
    return [name for name in every if name in chosen]


def _capability_names(given: Iterable[str]) -> set[str]:
    names = set()
    for text in given:
        name = text.upper()
        if name != "ALL" and not name.startswith("CAP_"):
            name = f"CAP_{name}"
        if name != "ALL" and name not in ALL_CAPABILITIES:
            raise InvalidInput(f"invalid capability: unknown capability: '{text}'")
        names.add(name)
    return names


def _limit(value: int) -> int:
    return (1 << 64) - 1 if value == -1 else value


def build_mounts(isolation: Isolation, mounts: Sequence[ContainerMount], *, cgroup: bool) -> list[dict[str, Any]]:
    """Return the default mounts, without those that the given ones replace, then the given ones, parents first."""
    targets = {mount.target for mount in mounts}
    shut = ["nodev"] if forbids_devices(isolation, cgroup_limits=cgroup) else []
    built = [
        mount
        for mount in default_mounts(isolation.shm_size_bytes, privileged=isolation.privileged, cgroup=cgroup)
        if mount["destination"] not in targets
    ]
    for mount in sorted(mounts, key=lambda one: one.target.count("/")):
        made = _bind(mount) if mount.type == "bind" else _tmpfs(mount)
        built.append({**made, "options": list(dict.fromkeys((*made["options"], *shut)))})
    return built


def _bind(mount: ContainerMount) -> dict[str, Any]:
    if not os.path.exists(mount.source):
        raise ContainerError(f"invalid mount config: bind source path does not exist: {mount.source}")
    access = "ro" if mount.readonly else "rw"
    return {
        "destination": mount.target,
        "type": "bind",
        "source": mount.source,
        "options": ["rbind" if mount.recursive else "bind", mount.propagation, access],
    }


def _tmpfs(mount: ContainerMount) -> dict[str, Any]:
    if mount.type != "tmpfs":
        raise InvalidInput(f"mount type {mount.type!r} is not known")
    options = ["nosuid", *(("nodev", "noexec") if mount.restricted else ()), "ro" if mount.readonly else "rw"]
    if mount.size_bytes is not None:
        options.append(f"size={mount.size_bytes}")
    options.append(f"mode={0o1777 if mount.mode is None else mount.mode:o}")
    return {"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options}


def _resources(isolation: Isolation, cgroup_limits: bool) -> dict[str, Any]:
    wanted = [
        flag
        for flag, value in (
            ("--memory", isolation.memory_bytes),
            ("--cpus", isolation.cpus),
            ("--pids-limit", isolation.pids),
        )
        if value is not None
    ]
    if not cgroup_limits:
        if wanted:
            raise ContainerError(f"{', '.join(wanted)}: this runtime cannot set cgroup limits on this machine")
        return {}
    resources: dict[str, Any] = {"devices": device_rules(privileged=isolation.privileged)}
    if isolation.memory_bytes is not None:
        if isolation.memory_bytes < LEAST_MEMORY_BYTES:  # the runtime itself needs some to begin with
            raise InvalidInput("minimum memory limit allowed is 6MB")
        resources["memory"] = {"limit": isolation.memory_bytes}
    if isolation.cpus is not None:
        if not 0 < isolation.cpus < float("inf"):
            raise InvalidInput(f"invalid value for --cpus: {isolation.cpus}")
        resources["cpu"] = {"quota": int(isolation.cpus * CPU_PERIOD_US), "period": CPU_PERIOD_US}
    if isolation.pids is not None:
        resources["pids"] = {"limit": isolation.pids}
    return resources


def _devices(isolation: Isolation) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    wanted = list(isolation.devices)
    if isolation.privileged:
        wanted = [
            *(device for device in host_devices() if device.target not in {one.target for one in wanted}),
            *wanted,
        ]
    devices, rules = [], []
    for device in wanted:
        try:
            status = os.stat(device.source)
        except OSError as error:
            raise ContainerError(
                f'error gathering device information for "{device.source}": {error.strerror}'
            ) from error
        if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise ContainerError(f'error gathering device information for "{device.source}": not a device node')
        kind = "c" if stat.S_ISCHR(status.st_mode) else "b"
        number = {"type": kind, "major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)}
        owner = {"fileMode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid}
        devices.append({"path": device.target, **number, **owner})
        rules.append({"allow": True, **number, "access": device.access})
    return devices, rules


def host_devices() -> list[Device]:
    """List the machine's devices for --privileged; the container has its own terminals, shm and console."""
    found = []
    waiting = ["/dev"]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name in ("pts", "shm", "mqueue", "console", "fd", "ptmx", "tty"):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_symlink() and stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode) in (
                    stat.S_IFCHR, stat.S_IFBLK,
                ):  # fmt: skip
                    found.append(Device(source=entry.path, target=entry.path))
    return sorted(found, key=lambda device: device.target)
