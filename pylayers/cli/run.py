"""`pylayers run` and `pylayers create`, once their command lines are read (see runline) into ContainerOptions."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from pylayers.cli.session import Session
from pylayers.errors import ContainerError, InvalidInput, PylayersError, Unsupported, translate_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pylayers.container.isolation import Isolation
    from pylayers.engine.container import Container, ContainerOptions

ENVIRONMENT_LIMIT_BYTES = 16 << 20
USAGE_EXIT_CODE = 125


def run(session: Session, /, image: str, command: tuple[str, ...], detach: bool, **given: Any) -> int:
    """Create and start a container from an image; leave with its command's exit code."""
    with failing_as_docker():
        options = read_options(given)
        if options.terminal and options.interactive and not detach:
            check_terminal()
        with session.open() as engine, cid_file(given["cidfile"]) as keep:
            container, code = engine.containers.run(image, command, options, detach=detach, when_made=keep)
    if code is not None:
        return code
    print(container.id)
    return 0


def create(session: Session, /, image: str, command: tuple[str, ...], **given: Any) -> None:
    """Create a container without starting it, and print its id."""
    options = read_options(given)
    with session.open() as engine, cid_file(given["cidfile"]) as keep:
        container = engine.containers.create(image, command, options)
        keep(container)
    print(container.id)


@contextmanager
def failing_as_docker() -> Iterator[None]:
    """Leave with 125 for every failure of ours, so that it isn't taken for the container's own exit code."""
    try:
        yield
    except ContainerError:
        raise
    except PylayersError as error:
        error.exit_code = USAGE_EXIT_CODE
        raise


@contextmanager
def cid_file(path: str | None) -> Iterator[Callable[[Container], None]]:
    """Yield what keeps a container's id in a file, which must not exist, and doesn't unless one was made."""
    if path is None:
        yield lambda container: None
        return
    try:
        file = open(path, "x", encoding="ascii")  # noqa: SIM115
    except FileExistsError:
        raise InvalidInput(
            f"container ID file found, make sure the other container isn't running or delete {path}"
        ) from None
    except OSError as error:
        raise translate_os_error(error, "create the container ID file") from error
    made: list[str] = []

    def keep(container: Container) -> None:
        made.append(container.id)
        file.write(container.id)
        file.flush()

    with file:
        try:
            yield keep
        finally:
            if not made:
                with suppress(FileNotFoundError):
                    os.unlink(path)


def check_terminal() -> None:
    """Refuse -it without a terminal, as docker does."""
    if not sys.stdin.isatty():
        raise InvalidInput("the input device is not a TTY", hint="leave out -t when stdin is no terminal")


def read_options(given: Mapping[str, Any]) -> ContainerOptions:
    """Turn the command line's options into an engine's."""
    from pylayers.cli.option import read_pairs
    from pylayers.engine.container import ContainerOptions

    files = [entry for path in given["environment_files"] for entry in read_environment_file(path)]
    entrypoint = given["entrypoint"]
    return ContainerOptions(
        name=given["name"],
        environment=tuple(resolve_environment([*files, *given["environment"]])),
        volumes=given["volumes"],
        mounts=given["mounts"],
        tmpfs=given["tmpfs"],
        working_dir=given["working_dir"],
        user=given["user"],
        entrypoint=None if entrypoint is None else ((entrypoint,) if entrypoint else ()),
        network=read_network(given["network"]),
        hostname=given["hostname"],
        remove=given["remove"],
        interactive=given["interactive"],
        terminal=given["terminal"],
        labels=read_pairs(given["labels"]),
        stop_signal=check_signal(given["stop_signal"]),
        stop_timeout_s=given["stop_timeout_s"],
        storage_options=given["storage_options"],
        isolation=read_isolation(given),
    )


def read_isolation(given: Mapping[str, Any]) -> Isolation:
    """Read the options that say how far the container is kept apart."""
    from pylayers.container.isolation import (
        SHM_SIZE_BYTES,
        Isolation,
        check_extra_host,
        parse_device,
        parse_limit,
    )

    cpus, pids = given["cpus"], given["pids"]
    if cpus is not None and not 0 < cpus < 1e6:
        raise InvalidInput(f"invalid --cpus {cpus}: give a number above 0")
    no_new_privileges, seccomp = read_security(given["security"])
    return Isolation(
        privileged=given["privileged"],
        capabilities_added=given["capabilities_added"],
        capabilities_dropped=given["capabilities_dropped"],
        readonly=given["readonly"],
        no_new_privileges=no_new_privileges,
        seccomp=seccomp,
        shm_size_bytes=SHM_SIZE_BYTES if given["shm_size"] is None else read_size(given["shm_size"]),
        limits=tuple(parse_limit(one) for one in given["limits"]),
        devices=tuple(parse_device(one) for one in given["devices"]),
        extra_hosts=tuple(check_extra_host(one) for one in given["extra_hosts"]),
        memory_bytes=None if given["memory"] is None else read_size(given["memory"]),
        cpus=cpus,
        pids=pids if pids is not None and pids > 0 else None,
    )


def read_size(given: str) -> int:
    """Read --memory or --shm-size. Raises InvalidInput."""
    from pylayers.volume.parse import parse_size

    return parse_size(given)


def read_security(given: Sequence[str]) -> tuple[bool, str]:
    """Read --security-opt: whether privileges can't be gained, and the seccomp profile."""
    no_new_privileges, seccomp = False, "default"
    for entry in given:
        key, _, value = entry.partition("=") if "=" in entry else entry.partition(":")
        if key == "no-new-privileges" and value in ("", "true", "false"):
            no_new_privileges = value != "false"
        elif key == "seccomp" and value:
            seccomp = "default" if value == "builtin" else value
        elif (key, value) in (("apparmor", "unconfined"), ("label", "disable")):
            continue  # pylayers sets neither
        else:
            raise Unsupported(
                f"--security-opt {entry} is not supported", hint="use no-new-privileges or seccomp=PROFILE|unconfined"
            )
    return no_new_privileges, seccomp


def read_network(mode: str) -> str:
    """Read --network."""
    if mode not in ("host", "none", "default"):
        raise Unsupported(f"network mode {mode!r} is not supported", hint="use host or none")
    return "host" if mode == "default" else mode


def check_signal(signal: str) -> str:
    """Refuse an unknown --stop-signal before anything is made."""
    if signal:
        from pylayers.container.stop import parse_signal

        parse_signal(signal)
    return signal


def resolve_environment(given: Sequence[str]) -> list[str]:
    """Give names without a value the one that this process has; a name it has not is left out."""
    found: list[str] = []
    for entry in given:
        name, equals, _ = entry.partition("=")
        if not name:
            raise InvalidInput(f"invalid environment variable: {entry}")
        if equals:
            found.append(entry)
        elif name in os.environ:
            found.append(f"{name}={os.environ[name]}")
    return found


def read_environment_file(path: str) -> list[str]:
    """Read docker's env file: NAME=VALUE or NAME a line, # comments; quotes mean nothing. Raises InvalidInput."""
    try:
        with open(path, "rb") as file:
            content = file.read(ENVIRONMENT_LIMIT_BYTES + 1)
    except OSError as error:
        raise translate_os_error(error, "read the env file") from error
    if len(content) > ENVIRONMENT_LIMIT_BYTES:
        raise InvalidInput(f"env file {path} is larger than {ENVIRONMENT_LIMIT_BYTES} bytes")
    found: list[str] = []
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"env file {path} is not UTF-8: byte {error.start}") from None
    for number, line in enumerate(lines, 1):
        entry = line.removesuffix("\r").lstrip()
        if not entry or entry.startswith("#"):
            continue
        name = entry.partition("=")[0]
        if not name or any(letter.isspace() for letter in name) or "\0" in entry:
            raise InvalidInput(f"{path}:{number}: invalid variable name {name!r}", hint="give NAME=VALUE")
        found.append(entry)
    return found
