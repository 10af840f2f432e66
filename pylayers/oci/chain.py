"""OCI chain ids: one digest for a stack of layers."""

from __future__ import annotations

from collections.abc import Sequence

from pylayers.errors import InvalidInput
from pylayers.oci.digest import check_digest, digest_of


def extend_chain(parent_chain_id: str | None, diff_id: str) -> str:
    """Return the chain id of a layer laid over a chain (None: over nothing)."""
    check_digest(diff_id, "diff_id")
    if parent_chain_id is None:
        return diff_id
    return digest_of(f"{check_digest(parent_chain_id, 'chain_id')} {diff_id}".encode())


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Return the chain id of each prefix of a stack, lowest layer first."""
    found: list[str] = []
    for diff_id in diff_ids:
        found.append(extend_chain(found[-1] if found else None, diff_id))
    return found


def chain_id(diff_ids: Sequence[str]) -> str:
    """Return the chain id of a whole stack. Raises InvalidInput when it is empty."""
    if not diff_ids:
        raise InvalidInput("an empty stack of layers has no chain id")
    return chain_ids(diff_ids)[-1]
