"""What an ADD's source is when it is no local path: a git repository or a URL."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pylayers.build.session import BuildSession
from pylayers.build.source.git import open_git, parse_git
from pylayers.dockerfile import instructions as df
from pylayers.errors import InvalidInput
from pylayers.record import replace

if TYPE_CHECKING:
    from pylayers.build.copy.layout import SourceTree
    from pylayers.build.source.local import LocalTree


class Checkout:
    """Remove a repository's checkout once its tree is closed."""

    def __init__(self, tree: LocalTree, folders: list[Path]) -> None:
        self._close = tree.close
        self._folders = folders

    def close(self) -> None:
        """Close the tree and remove its files."""
        self._close()
        remove(self._folders)


def open_remote(session: BuildSession, instruction: df.Add, source: str, trees: list[SourceTree]) -> bool:
    """Open a source that is not in the context; False when it is a local path after all."""
    address = parse_git(source)
    if address is not None:
        if instruction.checksum and address.checksum and instruction.checksum != address.checksum:
            raise InvalidInput(f"{source}: --checksum says {instruction.checksum}", span=instruction.span)
        checksum = instruction.checksum or address.checksum
        address = replace(
            address, checksum=checksum, keep_git_dir=address.keep_git_dir or instruction.keep_git_dir
        )
        folders: list[Path] = []
        try:
            tree = open_git(session, address, folders)
        except BaseException:
            remove(folders)
            raise
        tree.close = Checkout(tree, folders).close  # type: ignore[method-assign]
        trees.append(tree)
        return True
    if source.lower().startswith(("http://", "https://")):
        from pylayers.build.source.remote import open_url

        unpack = bool(instruction.unpack)
        trees.append(open_url(session, source, instruction.checksum, unpack=unpack, owned=bool(instruction.chown)))
        return True
    return False


def remove(folders: list[Path]) -> None:
    """Remove checkouts."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
