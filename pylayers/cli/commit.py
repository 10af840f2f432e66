"""`pylayers commit`, and the reading of its plain lines: see option."""

from __future__ import annotations

from collections.abc import Sequence

from pylayers.cli.option import MANY, ONE, Option, read_globals, read_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pylayers.cli.session import Session

VERBS = ("commit",)
OPTIONS = (
    Option(("-a", "--author"), "author", ONE, "Author of the image.", default=""),
    Option(("-m", "--message"), "message", ONE, "Comment in the image's history.", default=""),
    Option(("-c", "--change"), "changes", MANY, "Apply a Dockerfile instruction.", metavar="INSTRUCTION"),
)


def commit(
    session: Session, /, container: str, name: str | None, author: str, message: str, changes: tuple[str, ...]
) -> None:
    """Make an image from a container's image and what the container changed."""
    with session.open() as engine:
        made = engine.images.commit(container, name, author=author, message=message, changes=changes)
    print(made.id)


def read_line(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]] | None:
    """Return the global options and commit's keywords of a plain `[GLOBALS] commit …` line; None for any other."""
    found = read_globals(arguments, VERBS)
    if found is None:
        return None
    values = read_options(found[2])
    return None if values is None else (found[0], values)


def read_options(words: Sequence[str]) -> dict[str, Any] | None:
    """Return the keywords that the words after `commit` give, None when click has to judge them."""
    found = read_words(OPTIONS, words, interspersed=True)
    if found is None or not 1 <= len(found[1]) <= 2:
        return None
    container, *names = found[1]
    return {"container": container, "name": names[0] if names else None, **found[0]}
