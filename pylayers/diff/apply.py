"""Unpack layers into a directory."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pylayers._native import unpack
from pylayers.diff.namespace import in_user_namespace
from pylayers.errors import translate_os_error
from pylayers.store.layer import Layer

WHITEOUT_APPLY = unpack.WHITEOUT_APPLY
WHITEOUT_OVERLAY = unpack.WHITEOUT_OVERLAY
WHITEOUT_USERXATTR = unpack.WHITEOUT_USERXATTR


def device_flags() -> int:
    """Return unpack's flags for devices."""
    return unpack.NO_DEVICES if in_user_namespace() else 0


def apply_layer(root_fd: int, layer: Layer, whiteouts: int = WHITEOUT_APPLY) -> int:
    """Unpack one layer below a directory and return the bytes of file data written.

    Default: onto a full tree, where whiteouts delete. In a user namespace devices are left out, as docker and podman do
    there. What was unpacked before an error stays.
    """
    try:
        tar = layer.open_tar()
        try:
            return unpack.unpack(root_fd, tar, layer.table.records, layer.table.heap, whiteouts, device_flags())
        finally:
            os.close(tar)
    except OSError as error:
        raise translate_os_error(error, f"unpack layer {layer.diff_id}") from error


def apply_layers(root_fd: int, layers: Iterable[Layer]) -> int:
    """Unpack layers, lowest first, into one directory and return the bytes of file data written."""
    return sum(apply_layer(root_fd, layer) for layer in layers)
