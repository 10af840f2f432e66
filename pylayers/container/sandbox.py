"""Run one process in a container and wait for it: what a build's RUN does."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pylayers.container import grace
from pylayers.container.apart import Apart
from pylayers.container.bubblewrap import bubblewrap_arguments
from pylayers.container.bundle import encode_config, minimal_environment, runtime_error, write_config
from pylayers.container.filter import KeptFilter, find_filter
from pylayers.container.isolation import ContainerMount, Isolation, Process
from pylayers.container.network import write_network_files
from pylayers.container.runtime import Runtime
from pylayers.container.spec import build_config, forbids_devices
from pylayers.container.stubs import Stubs
from pylayers.container.termination import terminable
from pylayers.errors import Conflict, ContainerError, translate_os_error
from pylayers.record import record, replace
from pylayers.snapshot import mount as snapshot_mount
from pylayers.snapshot.snapshotter import Mount

CHUNK_BYTES = 64 << 10
KILL_WAIT_SECONDS = 10
LOOK_MS = 5  # for the filter of a container that has one compiled
HOSTNAME = "pylayers"

# Called with 1 (stdout) or 2 (stderr) and what was read.
Output = Callable[[int, bytes], None]


@record
class ExitStatus:
    """Tell how the process ended; 128 + n after signal n."""

    code: int


class Cancelled(ContainerError):
    """The run was stopped through its cancel descriptor."""


def run_once(
    rootfs: Sequence[Mount],
    process: Process,
    *,
    runtime: Runtime,
    work_directory: Path,
    isolation: Isolation | None = None,
    mounts: Sequence[ContainerMount] = (),
    output: Output | None = None,
    stdin_fd: int | None = None,
    stdout_fd: int | None = None,
    stderr_fd: int | None = None,
    cancel_fd: int | None = None,
    filters: Path | None = None,
) -> ExitStatus:
    """Mount rootfs, run a process in it, and take everything down again.

    Output goes to the callback as it comes, else to stdout_fd and stderr_fd (default: this process's own). stdin is
    empty unless stdin_fd is given. With process.terminal the runtime uses this process's terminal (stdin_fd, or 0).
    Ctrl-C, SIGTERM (in the main thread), an error in the callback and a readable cancel_fd kill the container first.
    Mount points made for the run don't stay in rootfs. The bundle is made in work_directory. filters is a folder of
    compiled seccomp filters, see filter.
    Raises ContainerError (exit_code 125, 126, 127), DriverError, PermissionDenied, Unsupported, Cancelled.
    """
    if runtime.limits:
        grace.begin()
    run_id = f"run-{secrets.token_hex(8)}"
    folder = work_directory / run_id
    isolation = replace(isolation or Isolation(), hostname=(isolation and isolation.hostname) or HOSTNAME)
    try:
        (folder / "rootfs").mkdir(parents=True, mode=0o700)
        try:
            mounts = [*write_network_files_for(folder, isolation, mounts), *mounts]
            shut = forbids_devices(isolation, cgroup_limits=runtime.limits)
            with _mounted(rootfs, folder / "rootfs", shut) as (root, stubs_for):
                config = _configure(process, isolation, mounts, root=root, run_id=run_id, runtime=runtime)
                stubs = stubs_for([mount["destination"] for mount in config["mounts"]])
                try:
                    run = _Run(runtime, folder, run_id, config=config, output=output, cancel_fd=cancel_fd)
                    if filters is not None:
                        run.take_filter(filters)
                    return run.run(stdin_fd, stdout_fd, stderr_fd)
                finally:
                    stubs.remove()
        finally:
            shutil.rmtree(folder / "runtime", ignore_errors=True)
            _remove_bundle(folder)
    except OSError as error:
        raise translate_os_error(error, f"run {process.arguments[0] if process.arguments else ''}") from error


def write_network_files_for(
    folder: Path, isolation: Isolation, mounts: Sequence[ContainerMount]
) -> list[ContainerMount]:
    """Make the read-only resolv.conf and hosts of a build step; /etc/hostname stays the image's, as in BuildKit."""
    taken = [mount.target for mount in mounts] + ["/etc/hostname"]
    return write_network_files(folder, isolation, isolation.hostname, taken, readonly=True)


def _configure(
    process: Process,
    isolation: Isolation,
    mounts: Sequence[ContainerMount],
    *,
    root: Path,
    run_id: str,
    runtime: Runtime,
) -> dict[str, Any]:
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return build_config(
            process, isolation, mounts, root_fd=root_fd, container_id=run_id, cgroup_limits=runtime.limits
        )
    finally:
        os.close(root_fd)


@contextlib.contextmanager
def _mounted(rootfs: Sequence[Mount], root: Path, shut: bool) -> Iterator[tuple[Path, Callable[[list[str]], Stubs]]]:
    upper = next((Path(one.upper) for one in rootfs if one.type == "overlay" and one.upper), None)
    made: list[Stubs] = []

    def stubs_for(targets: list[str]) -> Stubs:
        made.append(Stubs(root, targets, upper))
        return made[-1]

    snapshot_mount.mount(rootfs, root, nodev=shut)
    try:
        yield root, stubs_for
    finally:
        try:
            snapshot_mount.unmount(root)
        except Conflict:
            snapshot_mount.unmount(root, detach=True)
        for stubs in made:
            stubs.prune_upper()


def _remove_bundle(folder: Path) -> None:
    """Delete the bundle's files one by one: were rootfs still mounted, a recursive delete would empty the snapshot."""
    for name in ("config.json", ".config.json", "resolv.conf", "hosts", "hostname", "log.json"):
        (folder / name).unlink(missing_ok=True)
    for path in (folder / "rootfs", folder):
        with contextlib.suppress(OSError):
            path.rmdir()


class _Run:
    """Drive one runtime process."""

    def __init__(
        self,
        runtime: Runtime,
        folder: Path,
        run_id: str,
        *,
        config: dict[str, Any],
        output: Output | None,
        cancel_fd: int | None,
    ) -> None:
        self.runtime = runtime
        self.folder = folder
        self.run_id = run_id
        self.config = config
        self.output = output
        self.cancel_fd = cancel_fd
        self.log = folder / "log.json"
        self._filter: KeptFilter | None = None  # to be kept, once it is compiled

    def take_filter(self, filters: Path) -> None:
        """Take a compiled seccomp filter from a folder, or keep this run's there."""
        rules = self.config["linux"].get("seccomp")
        found = find_filter(filters, self.runtime.name, self.runtime.command[0], rules)
        if found is not None:
            found.lend(self.config)
            self._filter = None if found.is_kept else found

    def _command(self) -> list[str]:
        if not self.runtime.oci:
            return [*self.runtime.command, *bubblewrap_arguments(self.config, self.folder / "rootfs")]
        write_config(self.folder, encode_config(self.config))
        return [*self._runtime_call(), "run", "--bundle", str(self.folder), self.run_id]

    def _runtime_call(self) -> list[str]:
        state = str(self.folder / "runtime")
        return [*self.runtime.command, "--root", state, "--log", str(self.log), "--log-format", "json"]

    def run(self, stdin_fd: int | None, stdout_fd: int | None, stderr_fd: int | None) -> ExitStatus:
        """Start the runtime, pass its output on and return the status."""
        terminal = bool(self.config["process"]["terminal"])
        piped = self.output is not None and not terminal
        if terminal and stdin_fd is None:
            stdin_fd = 0
        with terminable():
            child = self._start(
                self._command(),
                stdin=subprocess.DEVNULL if stdin_fd is None else stdin_fd,
                stdout=subprocess.PIPE if piped else stdout_fd,
                stderr=subprocess.PIPE if piped else stderr_fd,
                # Ctrl-C must reach us alone: we kill the container and clean up. A terminal needs its own group.
                process_group=None if terminal else 0,
            )
            try:
                self._pump(child)
                code = child.wait()
            except BaseException:
                self._kill(child)
                raise
            finally:
                for stream in (child.stdout, child.stderr):
                    if stream is not None:
                        stream.close()
        return self._status(code)

    def _start(self, command: list[str], **given: Any) -> subprocess.Popen[bytes]:
        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, env=minimal_environment(), **given)

        # The data root, as a rule: other steps' bundles lie beside this one, and containers'.
        with Apart(self.runtime.hides, self.folder, self.folder.parent.parent.parent) as apart:
            return apart.call(start)

    def _status(self, code: int) -> ExitStatus:
        if code < 0:
            code = 128 - code
        if code != 0 and self.runtime.oci:
            error = runtime_error(self.log, self.config["process"]["args"][0])
            if error is not None:
                raise error
        return ExitStatus(code)

    def _pump(self, child: subprocess.Popen[bytes]) -> None:
        """Read both pipes to their end and wait for the child, watching the cancel descriptor."""
        streams = {stream.fileno(): number for number, stream in ((1, child.stdout), (2, child.stderr)) if stream}
        ended = os.pidfd_open(child.pid)
        try:
            poll = select.poll()
            for descriptor in (*streams, ended):
                poll.register(descriptor, select.POLLIN)
            if self.cancel_fd is not None:
                poll.register(self.cancel_fd, select.POLLIN)
            waiting = {*streams, ended}
            while waiting:
                if self._filter is not None and self._filter.keep(self.folder / "runtime" / self.run_id):
                    self._filter = None
                for descriptor, _ in poll.poll(None if self._filter is None else LOOK_MS):
                    if descriptor == self.cancel_fd:
                        raise Cancelled("the run was cancelled", exit_code=130)
                    content = os.read(descriptor, CHUNK_BYTES) if descriptor in streams else b""
                    if content and self.output is not None:
                        self.output(streams[descriptor], content)
                    elif not content:
                        poll.unregister(descriptor)
                        waiting.discard(descriptor)
        finally:
            os.close(ended)

    def _kill(self, child: subprocess.Popen[bytes]) -> None:
        """Kill the container's first process, and with it all of it, then the runtime."""
        if self.runtime.oci and child.poll() is None:
            nothing = subprocess.DEVNULL
            command = [*self._runtime_call(), "delete", "--force", self.run_id]
            deletion = self._start(command, stdin=nothing, stdout=nothing, stderr=nothing)
            try:
                deletion.wait(timeout=KILL_WAIT_SECONDS)
            except BaseException:
                deletion.kill()
                deletion.wait()
                raise
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=1)
        if child.poll() is None:
            child.kill()
        child.wait(timeout=KILL_WAIT_SECONDS)
