"""Step keys: what a step's result depends on, hashed without ambiguity.

Every field is written with its length before it, so that no two different steps give the same bytes.
Secrets, ssh sockets, proxies and the content of build-time volumes never enter a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

KEY_VERSION = b"pylayers step key 1"


def hash_fields(kind: str, fields: Iterable[bytes]) -> str:
    """Return the BLAKE3 (hex) of length-prefixed fields."""
    from blake3 import blake3

    hasher = blake3(KEY_VERSION)
    for field in (kind.encode(), *fields):
        hasher.update(len(field).to_bytes(8, "little"))
        hasher.update(field)
    return hasher.hexdigest()


def pack_texts(texts: Sequence[str]) -> bytes:
    """Pack strings so that their borders count."""
    encoded = [text.encode(errors="surrogateescape") for text in texts]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def copy_partial_key(parent: bytes, destination: str, patterns: Sequence[str], options: Sequence[str]) -> str:
    """Return the key of a COPY without its content: equal for every content the same instruction ever copied."""
    return hash_fields(
        "copy", (parent, destination.encode(errors="surrogateescape"), pack_texts(patterns), pack_texts(options))
    )


def copy_key(partial: str, inputs: Sequence[tuple[str, bytes]]) -> str:
    """Return the key of a COPY: its partial key and each source's name and tree digest, in order."""
    fields = [name.encode(errors="surrogateescape") + b"\0" + digest for name, digest in inputs]
    return hash_fields("copy content", (partial.encode(), *fields))


def run_key(
    parent: bytes,
    command: Sequence[str],
    environment: Sequence[str],
    working_dir: str,
    user: str,
    options: Sequence[str],
    inputs: Sequence[tuple[str, bytes]],
) -> str:
    """Return the key of a RUN."""
    return hash_fields(
        "run",
        (
            parent,
            pack_texts(command),
            pack_texts(sorted(environment)),
            working_dir.encode(errors="surrogateescape"),
            user.encode(errors="surrogateescape"),
            pack_texts(options),
            *(name.encode(errors="surrogateescape") + b"\0" + digest for name, digest in inputs),
        ),
    )


def workdir_key(parent: bytes, path: str, user: str, epoch_s: int = 0) -> str:
    """Return the key of a WORKDIR that may have to make its directory, whose time is the epoch."""
    return hash_fields("workdir", (parent, pack_texts((path, user, *((str(epoch_s),) if epoch_s else ())))))


def configure_key(parent: bytes, config: bytes) -> str:
    """Return the key of a step that only changes the configuration: the state it leads to."""
    return hash_fields("configure", (parent, config))
