"""What the caller of a monitor that was started ahead has to tell it: that a spec is near, the spec, leave to start."""

from __future__ import annotations

import os

from pylayers.container.record import ContainerSpec, spec_from_json
from pylayers.jsontext import dump
from pylayers.record import to_mapping

LENGTH_BYTES = 8
GO, SOON = b"\1", b"\2"


class Withdrawn(Exception):
    """The caller has given the container up, or is gone."""


class Orders:
    """Read them, in a monitor; each is waited for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._spec: ContainerSpec | None = None
        self._near = self._free = False

    def await_soon(self) -> None:
        """Return once nothing is left to do but to make the container. Raises Withdrawn."""
        if not self._near:
            self._read(len(SOON))
            self._near = True

    def spec(self) -> ContainerSpec:
        """Return the container's spec. Raises Withdrawn."""
        if self._spec is None:
            self.await_soon()
            size_bytes = int.from_bytes(self._read(LENGTH_BYTES), "big")
            self._spec = spec_from_json(self._read(size_bytes))
        return self._spec

    def await_go(self) -> None:
        """Return once the container is recorded and may start. Raises Withdrawn."""
        if not self._free:
            self.spec()
            self._read(len(GO))
            self._free = True

    def _read(self, size_bytes: int) -> bytes:
        content = b""
        while len(content) < size_bytes:
            more = os.read(self._descriptor, size_bytes - len(content))
            if not more:
                raise Withdrawn
            content += more
        return content


def write_soon(descriptor: int) -> None:
    """Tell that the spec is a few milliseconds away. Raises OSError."""
    os.write(descriptor, SOON)


def write_spec(descriptor: int, spec: ContainerSpec) -> None:
    """Tell the spec. Raises OSError."""
    content = dump(to_mapping(spec)).encode()
    content = len(content).to_bytes(LENGTH_BYTES, "big") + content
    while content:
        content = content[os.write(descriptor, content) :]


def write_go(descriptor: int) -> None:
    """Tell that the container may start. Raises OSError."""
    os.write(descriptor, GO)
