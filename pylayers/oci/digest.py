"""Digests as OCI writes them: "sha256:<64 lower-case hex digits>", kept as plain strings."""

from __future__ import annotations

import hashlib

from pylayers.errors import InvalidInput

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
    return PREFIX + hashlib.sha256(content).hexdigest()


def digest_hex(digest: str) -> str:
    """Return the hex part of a digest; raises InvalidInput when it isn't one, so the result is safe in a path."""
    return check_digest(digest)[len(PREFIX) :]


def digest_from_hex(text: str) -> str:
    """Return the digest with these hex digits."""
    return check_digest(PREFIX + text)
