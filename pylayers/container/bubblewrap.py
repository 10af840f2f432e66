"""Run an OCI configuration with bubblewrap, where no OCI runtime works.

Kept: namespaces, capabilities, masked and read-only paths, mounts, network, environment. Not to be had from bubblewrap,
and refused instead of left out: cgroup limits, other users than root, devices, exec. There is no seccomp filter.
"""

from __future__ import annotations

import os
import posixpath
import stat

from pylayers.errors import ContainerError, Unsupported
from pylayers.volume.rootpath import locate, make_directories, open_beneath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from _typeshed import StrPath


def bubblewrap_arguments(config: dict[str, Any], root: StrPath, *, info_fd: int | None = None) -> list[str]:
    """Translate config.json into bwrap's arguments, after checking that the command exists in root.

    Creates the working directory in root, as the OCI runtimes do. Raises Unsupported, ContainerError (126, 127).
    """
    process = config["process"]
    _refuse(config)
    check_command(root, process)
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(make_directories(root_fd, process["cwd"]))
        arguments = ["--bind", str(root), "/"]
        for mount in config["mounts"]:
            # bwrap refuses a symlink as the target (/etc/resolv.conf often is one), so it gets where that leads.
            arguments += _mount({**mount, "destination": "/" + locate(root_fd, mount["destination"]).path})
    finally:
        os.close(root_fd)
    arguments += _hidden(config["linux"])
    if config["root"]["readonly"]:
        arguments += ["--remount-ro", "/"]  # only now: bwrap makes the mount points itself
    arguments += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", config["hostname"], "--as-pid-1"]
    arguments += ["--die-with-parent", "--chdir", process["cwd"], "--clearenv"]
    if any(namespace["type"] == "network" for namespace in config["linux"]["namespaces"]):
        arguments.append("--unshare-net")
    if os.geteuid() != 0:
        arguments += ["--unshare-user", "--uid", "0", "--gid", "0"]
    arguments += ["--cap-drop", "ALL"]
    for capability in process["capabilities"]["bounding"]:
        arguments += ["--cap-add", capability]
    for setting in process["env"]:
        name, _, value = setting.partition("=")
        arguments += ["--setenv", name, value]
    if info_fd is not None:
        arguments += ["--info-fd", str(info_fd)]
    return [*arguments, "--", *process["args"]]


def _hidden(linux: dict[str, Any]) -> list[str]:
    arguments: list[str] = []
    for path in linux.get("readonlyPaths", ()):
        if os.path.exists(path):
            arguments += ["--ro-bind", path, path]
    for path in linux.get("maskedPaths", ()):
        if os.path.isdir(path):
            arguments += ["--tmpfs", path, "--remount-ro", path]
        elif os.path.exists(path):
            arguments += ["--ro-bind", os.devnull, path]
    return arguments


def _refuse(config: dict[str, Any]) -> None:
    process, linux = config["process"], config["linux"]
    if process["user"]["uid"] or process["user"]["gid"]:
        raise Unsupported(
            f"bubblewrap cannot run as user {process['user']['uid']}: it can only stay root",
            hint="install runc or crun",
        )
    if process.get("rlimits"):
        raise Unsupported("bubblewrap sets no resource limits (--ulimit)", hint="install runc or crun")
    if linux.get("devices"):
        raise Unsupported("bubblewrap adds no devices (--device, --privileged)", hint="install runc or crun")


def _mount(mount: dict[str, Any]) -> list[str]:
    target, kind, options = mount["destination"], mount["type"], mount["options"]
    if kind == "bind":
        return ["--ro-bind" if "ro" in options else "--bind", mount["source"], target]
    if kind in ("proc", "mqueue"):
        return [f"--{kind}", target]
    if kind == "sysfs":
        return ["--ro-bind" if "ro" in options else "--bind", "/sys", target]
    if target == "/dev":
        return ["--dev", target]
    if kind in ("devpts", "cgroup"):  # --dev has made the terminals, /sys brings the cgroups
        return []
    values = dict(option.partition("=")[::2] for option in options)
    arguments = ["--size", values["size"]] if "size" in values else []
    arguments += ["--perms", values.get("mode", "1777"), "--tmpfs", target]
    return arguments + (["--remount-ro", target] if "ro" in options else [])


def check_command(root: StrPath, process: dict[str, Any]) -> None:
    """Look for the command in the root file system as execvp would. Raises ContainerError with docker's 126 or 127."""
    name = process["args"][0]
    path = next((setting[5:] for setting in process["env"] if setting.startswith("PATH=")), "")
    places = [name] if "/" in name else [posixpath.join(folder or ".", name) for folder in path.split(":")]
    found_unusable = False
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for place in places:
            try:
                descriptor = open_beneath(root_fd, posixpath.join(process["cwd"], place), os.O_PATH)
            except OSError:
                continue
            mode = os.fstat(descriptor).st_mode
            os.close(descriptor)
            if stat.S_ISREG(mode) and mode & 0o111:
                return
            found_unusable = True
    finally:
        os.close(root_fd)
    if found_unusable:
        raise ContainerError(f'exec: "{name}": permission denied', exit_code=126)
    where = "no such file or directory" if "/" in name else "executable file not found in $PATH"
    raise ContainerError(f'exec: "{name}": {where}', exit_code=127)
