"""What two answers must have in common."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.interop.check.ask import Answer

# The frontend's prefix; buildx's; and what is only said of images that have to be fetched.
PREFIX = re.compile(r"^(?:failed to build: failed to solve: )?(?:dockerfile parse error on line \d+: )?")
PLACE = re.compile(r"^Dockerfile:(\d+)$", re.MULTILINE)
FETCH = re.compile(r"(\S+?): failed to resolve source metadata for \S+ failed to do request: .* no such host")
MISSING = re.compile(r"base image '(\S+)' is not in the store")
RULES = re.compile(r"lint violation found for rules: (.*)")


class Shown(NamedTuple):
    """An answer's parts: `line` is the error's, 0 for none."""

    exit: int
    head: str
    warnings: list[str]
    refused: bool
    line: int
    message: str


def read(answer: Answer) -> Shown:
    """Take an answer apart; the order of one line's warnings is chance in docker."""
    head, *warnings = answer["found"].strip("\n").split("\n\nWARNING: ")
    error = "\n".join(line for line in answer["error"].splitlines() if not line.startswith("hint: "))
    place = PLACE.search(error)
    return Shown(
        answer["exit"],
        head,
        sorted(warning.strip("\n") for warning in warnings),
        bool(error),
        int(place[1]) if place else 0,
        read_message(error),
    )


def read_message(error: str) -> str:
    """Return an error's message in the words that both use."""
    message = PREFIX.sub("", error.partition("\nDockerfile:")[0].removeprefix("ERROR: "))
    message = FETCH.sub(r"no image \1", MISSING.sub(r"no image \1", message))
    rules = RULES.match(message)
    if rules:
        return "lint violation found for rules: " + ", ".join(sorted(rules[1].split(", ")))
    return message.replace("(did you mean --", "(did you mean ")
