"""What a process in a container is given, as plain data; everything here can be written to and read from JSON."""

from __future__ import annotations

from pylayers.errors import InvalidInput, Unsupported
from pylayers.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.volume.parse import MountRequest

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHM_SIZE_BYTES = 64 << 20
LIMITS = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
    "rss", "rtprio", "rttime", "sigpending", "stack", "as",
)  # fmt: skip


@record(kw_only=True)
class Process:
    """Say what runs: arguments, environment ("K=V"), directory, user as written (name or id, optionally ":group")."""

    arguments: tuple[str, ...]
    environment: tuple[str, ...] = ()
    working_directory: str = "/"
    user: str = ""
    terminal: bool = False


@record(kw_only=True)
class ContainerMount:
    """Mount a host path ("bind") or memory ("tmpfs") at target inside the container."""

    type: str
    target: str
    source: str = ""
    readonly: bool = False
    propagation: str = "rprivate"
    recursive: bool = True
    size_bytes: int | None = None  # tmpfs
    mode: int | None = None  # tmpfs
    restricted: bool = True  # tmpfs: neither devices nor programs in it


@record(kw_only=True)
class Limit:
    """Set one resource limit, e.g. nofile."""

    name: str
    soft: int
    hard: int


@record(kw_only=True)
class Device:
    """Give the container a host device."""

    source: str
    target: str
    access: str = "rwm"


@record(kw_only=True)
class Isolation:
    """Say how far the process is kept apart; the defaults are docker's."""

    network: str = "host"  # "host" | "none"
    hostname: str = ""
    privileged: bool = False
    capabilities_added: tuple[str, ...] = ()
    capabilities_dropped: tuple[str, ...] = ()
    readonly: bool = False
    no_new_privileges: bool = False
    seccomp: str = "default"  # "default" (the machine's profile, if installed) | "unconfined" | a profile's path
    shm_size_bytes: int = SHM_SIZE_BYTES
    limits: tuple[Limit, ...] = ()
    devices: tuple[Device, ...] = ()
    extra_hosts: tuple[str, ...] = ()  # "name:address"
    sandboxed: bool = False  # a build's RUN: /etc/hosts has the hostname and the extra hosts, nothing of the machine's
    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None


def mount_from_request(request: MountRequest, volume_path: str = "") -> ContainerMount:
    """Turn a parsed -v, --mount or --tmpfs into a mount; volume_path is the _data of its volume.

    Raises Unsupported for an SELinux relabel on a machine that enforces SELinux.
    """
    if request.relabel:
        refuse_relabel()
    if request.type == "tmpfs":
        return ContainerMount(
            type="tmpfs",
            target=request.target,
            readonly=request.readonly,
            size_bytes=request.tmpfs_size_bytes,
            mode=request.tmpfs_mode,
        )
    return ContainerMount(
        type="bind",
        target=request.target,
        source=volume_path if request.type == "volume" else request.source,
        readonly=request.readonly,
        propagation=request.propagation or "rprivate",
        recursive=request.recursive,
    )


def refuse_relabel() -> None:
    """Raise Unsupported where z and Z would have to do something; without SELinux they mean nothing, as in docker."""
    import os

    if os.path.exists("/sys/fs/selinux/enforce"):
        raise Unsupported(
            "pylayers doesn't relabel mounts for SELinux (:z and :Z)", hint="run chcon -Rt container_file_t on it"
        )


def parse_limit(given: str) -> Limit:
    """Parse a --ulimit value: name=soft[:hard], -1 for unlimited. Raises InvalidInput."""
    name, equals, values = given.partition("=")
    soft, colon, hard = values.partition(":")
    try:
        if not equals:
            raise ValueError
        limit = Limit(name=name.lower(), soft=int(soft), hard=int(hard if colon else soft))
    except ValueError:
        raise InvalidInput(f"invalid ulimit argument: {given}") from None
    if limit.name not in LIMITS:
        raise InvalidInput(f"invalid ulimit type: {name}")
    if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
        raise InvalidInput(f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}")
    return limit


def parse_device(given: str) -> Device:
    """Parse a --device value: /dev/x[:/dev/y][:rwm]. Raises InvalidInput."""
    parts = given.split(":")
    access = "rwm"
    if len(parts) > 1 and not parts[-1].startswith("/"):
        access = parts.pop()
    if (
        not 1 <= len(parts) <= 2
        or not all(part.startswith("/") for part in parts)
        or set(access) - set("rwm")
        or not access
    ):
        raise InvalidInput(f"invalid device specification: {given}")
    return Device(source=parts[0], target=parts[-1], access=access)


def check_extra_host(given: str) -> str:
    """Check an --add-host value (name:address or name=address) and return it with a colon. Raises InvalidInput."""
    import ipaddress

    name, separator, address = given.partition("=") if "=" in given else given.partition(":")
    try:
        ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        raise InvalidInput(f'bad format for add-host: "{given}"', hint="give NAME:ADDRESS, e.g. db:10.0.0.7") from None
    if not name or not separator or any(character.isspace() for character in name):
        raise InvalidInput(f'bad format for add-host: "{given}"')
    return f"{name}:{address.strip('[]')}"
