"""`RUN --mount=type=secret` and `type=ssh`: values in memory, and sockets that lead to an agent."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from pylayers._native import sysmount
from pylayers.build.run.mount import RunMount
from pylayers.build.run.option import Agent, Secret
from pylayers.build.run.source import unmount
from pylayers.container.isolation import ContainerMount
from pylayers.errors import BuildError, ContainerError, NotFound, Unsupported, translate_os_error

SECRET_MODE = 0o400
SOCKET_MODE = 0o600
SOCKET_FOLDER = "/run/buildkit"
SOCKET_VARIABLE = "SSH_AUTH_SOCK"
AGENT_SOCKET = "agent"
AGENT_WAIT_SECONDS = 5.0
CHUNK_BYTES = 1 << 16


def lend_secret(mount: RunMount, secrets: dict[str, Secret], folder: Path, number: int) -> tuple[
    list[ContainerMount], dict[str, str]
]:  # fmt: skip
    """Return the mount and the variable of one secret; its file is made in `folder`, which is memory.

    One that isn't there is empty in the variable and has no file. Raises NotFound where it is required.
    """
    secret = secrets.get(mount.id)
    if secret is None:
        if mount.required:
            raise NotFound(
                f"secret {mount.id}: not found", hint=f"give --secret id={mount.id},src=FILE to pylayers build"
            )
        return [], {} if mount.env is None else {mount.env: ""}
    content = secret.read()
    environment = {} if mount.env is None else {mount.env: content.decode(errors="surrogateescape")}
    if not mount.target:
        return [], environment
    path = folder / f"secret-{number}"
    write_private(path, content, mount, SECRET_MODE)
    return [ContainerMount(type="bind", source=str(path), target=mount.target, readonly=True)], environment


def write_private(path: Path, content: bytes, mount: RunMount, mode: int) -> None:
    """Write a file that belongs to the mount's account."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        written = 0
        while written < len(content):
            written += os.write(descriptor, memoryview(content)[written:])
        os.fchown(descriptor, mount.uid or 0, mount.gid or 0)
        os.fchmod(descriptor, mode if mount.mode is None else mount.mode)
    finally:
        os.close(descriptor)


def make_memory(place: Path, stack: ExitStack) -> Path:
    """Mount a file system in memory at a new folder until the stack is closed: what is in it never meets a disk."""
    place.mkdir(mode=0o700)
    stack.callback(place.rmdir)
    flags = sysmount.MS_NOSUID | sysmount.MS_NODEV | sysmount.MS_NOEXEC
    try:
        sysmount.mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags, b"mode=0700")
    except OSError as error:
        raise translate_os_error(error, "mount a tmpfs for secrets") from error
    stack.callback(unmount, place)
    return place


def lend_agent(
    mount: RunMount, agents: dict[str, Agent], folder: Path, number: int, stack: ExitStack
) -> list[ContainerMount]:
    """Return the mount of a socket that leads to an agent; none where the id was not given. Raises NotFound.

    The variable names the socket in both cases, as in BuildKit: see name_socket.
    """
    agent = agents.get(mount.id)
    if agent is None:
        if mount.required:
            raise NotFound(
                f"unset ssh forward key {mount.id}", hint=f"give --ssh {mount.id} to pylayers build"
            )
        return []
    upstream = agent.socket if agent.socket is not None else start_agent(agent, folder / f"keys-{number}", stack)
    path = folder / f"ssh-{number}"
    forward = Forward(path, upstream, mount)
    stack.callback(forward.close)
    return [ContainerMount(type="bind", source=str(path), target=name_socket(mount, number))]


def name_socket(mount: RunMount, number: int) -> str:
    """Return where an agent's socket is in the container."""
    return mount.target or f"{SOCKET_FOLDER}/ssh_agent.{number}"


class Forward:
    """Pass connections to a socket of our own, with the mount's owner and mode, on to an agent's."""

    def __init__(self, path: Path, upstream: Path, mount: RunMount) -> None:
        self._upstream = upstream
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bind_beneath(self._listener, path)
            os.chown(path, mount.uid or 0, mount.gid or 0)
            os.chmod(path, SOCKET_MODE if mount.mode is None else mount.mode)
            self._listener.listen(16)
        except BaseException:
            self._listener.close()
            raise
        self._open: set[socket.socket] = set()
        self._mutex = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return  # closed
            outer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with self._mutex:
                self._open |= {inner, outer}
            try:
                connect_beneath(outer, self._upstream)
            except OSError:
                self._drop(inner, outer)
                continue
            for source, target in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(CHUNK_BYTES):
                target.sendall(content)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
            return
        self._drop(source, target)

    def _drop(self, *sockets: socket.socket) -> None:
        with self._mutex:
            self._open -= set(sockets)
        for one in sockets:
            one.close()

    def close(self) -> None:
        """End every connection and take no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._thread.join(1)
        with self._mutex:
            left = list(self._open)
        for one in left:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._drop(*left)


def bind_beneath(listener: socket.socket, path: Path) -> None:
    """Bind a socket at a path of any length: the kernel takes 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def connect_beneath(client: socket.socket, path: Path) -> None:
    """Connect to a socket at a path of any length."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        client.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def start_agent(agent: Agent, folder: Path, stack: ExitStack) -> Path:
    """Start an ssh-agent that holds an id's keys until the stack is closed. Raises Unsupported, BuildError."""
    for tool in ("ssh-agent", "ssh-add"):
        if shutil.which(tool) is None:
            raise Unsupported(
                f"--ssh {agent.id}: {tool} is not installed, and key files need it",
                hint="install openssh-client, or give the socket of a running agent",
            )
    folder.mkdir(mode=0o700)
    environment = {"PATH": os.environ.get("PATH", os.defpath), SOCKET_VARIABLE: AGENT_SOCKET}
    # The socket's path is relative to the folder: a long one would not fit the kernel's limit.
    child = subprocess.Popen(
        ["ssh-agent", "-D", "-a", AGENT_SOCKET],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    stack.callback(end_agent, child)
    deadline_s = time.monotonic() + AGENT_WAIT_SECONDS
    while not (folder / AGENT_SOCKET).exists():
        if child.poll() is not None or time.monotonic() > deadline_s:
            raise ContainerError(f"--ssh {agent.id}: ssh-agent did not start")
        time.sleep(0.01)
    for key in agent.keys:
        added = subprocess.run(
            ["ssh-add", str(key)],
            cwd=folder,
            env={**environment, "SSH_ASKPASS_REQUIRE": "never"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if added.returncode:
            words = added.stderr.strip().splitlines()
            raise BuildError(f"--ssh {agent.id}: {key} cannot be added: {words[-1] if words else 'ssh-add failed'}")
    return folder / AGENT_SOCKET


def end_agent(child: subprocess.Popen[bytes]) -> None:
    """End an agent's process."""
    child.terminate()
    try:
        child.wait(AGENT_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
