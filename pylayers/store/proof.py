"""Hash two inputs beside each other, and prove a tar piece by piece from the states that are kept beside its layer."""

from __future__ import annotations

import threading

from pylayers._native import sha256
from pylayers.oci.digest import choose_sha256, digest_from_hex
from pylayers.store.entry import Buffer
from pylayers.store.state import EVERY_BYTES, STATE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Hasher(Protocol):
        """A sha256, ours or hashlib's."""

        def update(self, buffer: bytes | bytearray | memoryview, /) -> object:
            """Hash the next bytes."""

        def digest(self) -> bytes:
            """Return the digest of what has been hashed."""


class DisprovedError(Exception):
    """A piece of a tar leads to another state than the one kept: one of both is not what it was."""


class TarProof:
    """Verify the pieces of a tar, in any order and by any threads, against the states that its sha256 went through.

    The first piece has to lead from SHA-256's own beginning to the first state, every other one from a state to the
    next, and the last one to the diff_id. Where all do, the tar's sha256 is the diff_id, whoever wrote the states.
    """

    def __init__(self, states: bytes, size_bytes: int, diff_id: str) -> None:
        self._states = states
        self.size_bytes = size_bytes
        self.diff_id = diff_id

    @classmethod
    def find(cls, states: bytes | None, size_bytes: int, diff_id: str) -> TarProof | None:
        """Return the proof for a tar of this size; None without all of its states, or where hashlib is the faster."""
        if not states or len(states) != size_bytes // EVERY_BYTES * STATE_BYTES or not sha256.is_fast():
            return None
        return cls(states, size_bytes, diff_id)

    def verify(self, offset_bytes: int, content: memoryview) -> None:
        """Verify a piece that begins at a state and ends at one or at the tar's end. Raises DisprovedError."""
        first, count = offset_bytes // EVERY_BYTES, len(content) // EVERY_BYTES
        last = offset_bytes + len(content) == self.size_bytes
        if offset_bytes % EVERY_BYTES or (len(content) % EVERY_BYTES and not last):
            raise DisprovedError  # cut off
        for at in range(0, count - 1, 2):
            one, other = self._begin(first + at), self._begin(first + at + 1)
            start = at * EVERY_BYTES
            with content[start : start + EVERY_BYTES] as piece, content[start + EVERY_BYTES :][:EVERY_BYTES] as beside:
                sha256.update_two(one, piece, other, beside)
            self._end(first + at, one)
            self._end(first + at + 1, other)
        if count % 2:
            one = self._begin(first + count - 1)
            with content[(count - 1) * EVERY_BYTES : count * EVERY_BYTES] as piece:
                one.update(piece)
            self._end(first + count - 1, one)
        if last:
            whole = sha256.Sha256.resume(self._states, EVERY_BYTES)
            with content[count * EVERY_BYTES :] as piece:
                whole.update(piece)
            if digest_from_hex(whole.digest().hex()) != self.diff_id:
                raise DisprovedError

    def _begin(self, number: int) -> sha256.Sha256:
        before = self._states[:0] if number == 0 else self._state(number - 1)
        return sha256.Sha256.resume(before, EVERY_BYTES)

    def _end(self, number: int, hasher: sha256.Sha256) -> None:
        if hasher.states[-STATE_BYTES:] != self._state(number):
            raise DisprovedError

    def _state(self, number: int) -> bytes:
        return self._states[number * STATE_BYTES : (number + 1) * STATE_BYTES]


def new_hasher(every_bytes: int = 0) -> Hasher:
    """Return a new sha256: ours, which keeps its states after each every_bytes, where it is as fast as hashlib's."""
    return sha256.Sha256(every_bytes) if sha256.is_fast() else choose_sha256(None)()


def update_both(one: Hasher, one_buffer: Buffer, other: Hasher, other_buffer: Buffer) -> None:
    """Hash the next bytes of two inputs, in less time than one after the other."""
    if isinstance(one, sha256.Sha256) and isinstance(other, sha256.Sha256):
        sha256.update_two(one, one_buffer, other, other_buffer)
        return
    beside = threading.Thread(target=one.update, args=(one_buffer,))
    beside.start()
    other.update(other_buffer)
    beside.join()
