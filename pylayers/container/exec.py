"""Run another process in a running container."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator

from pylayers.container.bundle import minimal_environment, runtime_error
from pylayers.container.isolation import Process
from pylayers.container.launch import BUBBLEWRAP, make_apart
from pylayers.container.record import RUNNING, ContainerSpec, load_spec, load_state
from pylayers.container.spec import build_process, choose_capabilities
from pylayers.container.user import resolve_user
from pylayers.errors import Conflict, Unsupported, translate_os_error
from pylayers.jsontext import dump
from pylayers.record import replace
from pylayers.store.file import remove_file
from pylayers.thread import is_main

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # without the enums around it


def execute(
    directory: str,
    process: Process,
    *,
    interactive: bool = False,
    detach: bool = False,
    privileged: bool = False,
    stdin_fd: int | None = None,
    stdout_fd: int | None = None,
    stderr_fd: int | None = None,
) -> int:
    """Run a process in a running container and return its exit code (0 at once with detach).

    Environment, user and directory that the process leaves empty are the container's. Streams default to this
    process's own; a terminal is passed on as it is. Raises ContainerError (126, 127), Conflict, NotFound, Unsupported.
    """
    spec = load_spec(directory)
    if load_state(directory).status != RUNNING:
        raise Conflict(f"container {spec.name or spec.id[:12]} is not running", hint="pylayers start it first")
    if spec.runtime_name == BUBBLEWRAP:
        raise Unsupported(
            "exec needs an OCI runtime, and this container runs in bubblewrap", hint="install runc or crun"
        )
    token = secrets.token_hex(6)
    description = f"{directory}/exec-{token}.json"
    log = f"{directory}/exec-{token}.log"
    try:
        with open(description, "w") as file:
            file.write(dump(_describe(directory, spec, process, privileged)))
        command = [
            *spec.runtime,
            "--root",
            f"{directory}/runtime",
            "--log",
            log,
            "--log-format",
            "json",
            "exec",
        ]
        command += [*(["--detach"] if detach else []), "--process", description, spec.id]
        nothing = subprocess.DEVNULL

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                stdin=stdin_fd if interactive and not detach else nothing,
                stdout=nothing if detach else stdout_fd,
                stderr=nothing if detach else stderr_fd,
                env=minimal_environment(),
            )

        with _ignoring_interrupts():
            with make_apart(directory, spec) as apart:
                child = apart.call(start)
            code = child.wait()
        if code != 0:
            error = runtime_error(log, process.arguments[0])
            if error is not None:
                raise error
        return 128 - code if code < 0 else code
    except OSError as error:
        raise translate_os_error(error, f"exec in container {spec.id[:12]}") from error
    finally:
        for path in (description, log):
            remove_file(path, durable=False)


def _describe(directory: str, spec: ContainerSpec, process: Process, privileged: bool) -> dict[str, object]:
    isolation = replace(spec.isolation, privileged=spec.isolation.privileged or privileged)
    environment = [setting for setting in spec.process.environment if not setting.startswith("HOME=")]
    full = replace(
        process,
        environment=(*(spec.process.environment if not process.user else environment), *process.environment),
        working_directory=process.working_directory or spec.process.working_directory,
        user=process.user or spec.process.user,
    )
    root_fd = os.open(f"{directory}/bundle/rootfs", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        capabilities = choose_capabilities(isolation, device_rules=spec.runtime_limits)
        return build_process(full, isolation, resolve_user(root_fd, full.user), capabilities)
    finally:
        os.close(root_fd)


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Leave Ctrl-C to the runtime, which passes it on."""
    if not is_main():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
