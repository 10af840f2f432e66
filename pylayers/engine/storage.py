"""What is asked of a container's writable layer: docker's --storage-opt."""

from __future__ import annotations

from collections.abc import Sequence

from pylayers.errors import InvalidInput, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.snapshot.snapshotter import Snapshotter

SIZE = "size"


def read_storage_options(given: Sequence[str]) -> tuple[tuple[tuple[str, str], ...], int]:
    """Read NAME=VALUE options; return them, the last of a name, and the size limit in bytes (0: none).

    Raises InvalidInput in docker's words.
    """
    options: dict[str, str] = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not equals:
            raise InvalidInput(f"invalid storage option: {entry}", hint="give --storage-opt size=10G")
        if name.lower() != SIZE:
            raise InvalidInput(f"unknown storage option: {name}", hint="give --storage-opt size=10G")
        options[SIZE] = value
    if SIZE not in options:
        return (), 0
    from pylayers.volume.parse import parse_size

    return tuple(options.items()), parse_size(options[SIZE])


def limit_snapshot(driver: Snapshotter, key: str, size_bytes: int) -> None:
    """Limit a container's snapshot before its first mount; 0 is no limit. Raises Unsupported in the option's words."""
    if not size_bytes:
        return
    try:
        driver.limit(key, size_bytes)
    except Unsupported as error:
        raise Unsupported(f"--storage-opt size: {error.message}", hint=error.hint) from error
