"""The states that a tar's sha256 went through, kept beside the layer: hashing a tar that begins alike resumes there.

See docs/internals/spliced-layer.md for the file. Losing or damaging it costs a layer written whole, never a wrong one.
"""

from __future__ import annotations

import os
import struct

from pylayers.store.entry import Buffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

STATES_NAME = "layer.states"
EVERY_BYTES = 4 << 20  # between two states: hashing so much again takes 2 ms
STATE_BYTES = 32
CHECKSUM_BYTES = 32
_MAGIC = b"PLSHA256"
_VERSION = 1
_HEAD = struct.Struct("<8sIIQ32s")  # magic, version, bytes of a state, bytes between states, the tar's sha256


def kept_states(hasher: object) -> bytes:
    """Return the states that a hasher has kept; none of another kind than ours."""
    states: bytes = getattr(hasher, "states", b"")
    return states


def pack_states(states: Buffer, diff_hex: str) -> bytes:
    """Return the file of a tar's states."""
    from blake3 import blake3

    content = _HEAD.pack(_MAGIC, _VERSION, STATE_BYTES, EVERY_BYTES, bytes.fromhex(diff_hex)) + bytes(states)
    return content + blake3(content).digest()


def read_states(path: StrPath, diff_hex: str) -> bytes | None:
    """Return a tar's states; None for a file that is missing, damaged, of another tar or another version."""
    from blake3 import blake3

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb", buffering=0) as file:
        content = file.read()
    body = content[:-CHECKSUM_BYTES]
    if len(body) < _HEAD.size or blake3(body).digest() != content[-CHECKSUM_BYTES:]:
        return None
    head = _HEAD.unpack_from(body)
    states = body[_HEAD.size :]
    if head != (_MAGIC, _VERSION, STATE_BYTES, EVERY_BYTES, bytes.fromhex(diff_hex)) or len(states) % STATE_BYTES:
        return None
    return states
