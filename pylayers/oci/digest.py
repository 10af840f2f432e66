"""Digests as OCI writes them: "sha256:<64 lower-case hex digits>", kept as plain strings."""

from __future__ import annotations

from collections.abc import Callable

from pylayers.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The interpreter's own sha256, by its names since 3.12 and before: hashlib would load OpenSSL, which takes longer
# (2 ms) than all the digests of an unchanged rebuild.
try:
    from _sha2 import sha256 as _small_sha256  # type: ignore[import-not-found]
except ImportError:
    try:
        from _sha256 import sha256 as _small_sha256  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256 as _small_sha256
SMALL_BYTES = 1 << 16  # from here on OpenSSL's speed is worth it

PREFIX = "sha256:"
HEX_LENGTH = 64
_HEX = frozenset("0123456789abcdef")


def is_digest(text: str) -> bool:
    """Tell whether text is a sha256 digest."""
    return (
        len(text) == len(PREFIX) + HEX_LENGTH and text.startswith(PREFIX) and _HEX.issuperset(text[len(PREFIX) :])
    )


def check_digest(text: str, field: str = "digest") -> str:
    """Return text unchanged if it is a sha256 digest, else raise InvalidInput that names the field."""
    if not is_digest(text):
        raise InvalidInput(f"{field}: {text[:100]!r} is not a digest (sha256: and 64 lower-case hex digits)")
    return text


def digest_of(content: bytes | bytearray | memoryview) -> str:
    """Return the digest of bytes."""
    return PREFIX + hex_of(content)


def hex_of(content: bytes | bytearray | memoryview) -> str:
    """Return the sha256 of bytes as hex digits alone."""
    if len(content) <= SMALL_BYTES:
        return str(_small_sha256(content).hexdigest())
    import hashlib

    return hashlib.sha256(content).hexdigest()


def choose_sha256(size_bytes: int | None) -> Callable[[], Any]:
    """Return what makes a hasher for about as many bytes (None: many), OpenSSL's where its speed pays for loading."""
    if size_bytes is not None and size_bytes <= SMALL_BYTES:
        made: Callable[[], Any] = _small_sha256
        return made
    import hashlib

    return hashlib.sha256


def digest_hex(digest: str) -> str:
    """Return the hex part of a digest; raises InvalidInput when it isn't one, so the result is safe in a path."""
    return check_digest(digest)[len(PREFIX) :]


def digest_from_hex(text: str) -> str:
    """Return the digest with these hex digits."""
    return check_digest(PREFIX + text)
