"""What an ADD's source is when it is no local path: a git repository or a URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pylayers.build.session import BuildSession
from pylayers.dockerfile import instructions as df
from pylayers.errors import Unsupported

if TYPE_CHECKING:
    from pylayers.build.copy import SourceTree


def open_remote(session: BuildSession, instruction: df.Add, source: str, trees: list[SourceTree]) -> bool:
    """Open a source that is not in the context; False when it is a local path after all."""
    if "://" not in source:
        return False
    raise Unsupported(f"ADD of a URL is not supported yet: {source}", span=instruction.span)
