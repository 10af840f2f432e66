"""Make the committed snapshots of an image's layers, where a driver doesn't have them yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from pylayers.errors import AlreadyExists, NotFound
from pylayers.oci.chain import chain_id
from pylayers.snapshot.catalog import UNPACKING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.snapshot.snapshotter import Snapshotter
    from pylayers.store.layer import Layer


def unpack_layers(driver: Snapshotter, diff_ids: Sequence[str], open_layer: Callable[[str], Layer]) -> str | None:
    """Return the name (chain id) of the snapshot with all layers applied; None for no layers.

    Two processes may unpack one chain at a time: both work on keys of their own and the second to commit drops its
    copy. A crash leaves an uncommitted key, which goes when the driver is opened next.
    """
    present = len(diff_ids)
    while present and not has_snapshot(driver, chain_id(diff_ids[:present])):
        present -= 1
    for count in range(present + 1, len(diff_ids) + 1):
        parent = chain_id(diff_ids[: count - 1]) if count > 1 else None
        unpack_one(driver, chain_id(diff_ids[:count]), parent, open_layer(diff_ids[count - 1]))
    return chain_id(diff_ids) if diff_ids else None


def unpack_one(driver: Snapshotter, name: str, parent: str | None, layer: Layer) -> None:
    """Apply one layer over its parent and commit the result under its chain id."""
    key = f"{UNPACKING}{os.urandom(16).hex()}"
    driver.prepare(key, parent, lasting=False)
    try:
        driver.apply(key, layer)
        driver.commit(name, key)
    except AlreadyExists:
        driver.remove(key)
    except BaseException:
        driver.remove(key)
        raise


def has_snapshot(driver: Snapshotter, name: str) -> bool:
    """Tell whether a snapshot exists."""
    try:
        driver.stat(name)
    except NotFound:
        return False
    return True
