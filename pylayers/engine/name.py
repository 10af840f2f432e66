"""Container names: what may be one, and one for those that were given none; and ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from pylayers.errors import InvalidInput

QUALITIES = (
    "amber", "brisk", "calm", "clear", "crisp", "deft", "eager", "fair", "fond", "frank", "gentle", "glad", "grand",
    "happy", "honest", "keen", "kind", "lively", "loyal", "lucid", "merry", "mild", "neat", "noble", "placid",
    "plain", "proud", "quick", "quiet", "ready", "serene", "sharp", "smart", "solid", "steady", "sunny", "swift",
    "tidy", "vivid", "warm", "wise", "witty",
)  # fmt: skip
THINGS = (
    "anchor", "aspen", "badger", "beacon", "birch", "bridge", "brook", "canyon", "cedar", "cliff", "comet", "coral",
    "crane", "dune", "eagle", "ember", "falcon", "fern", "finch", "fjord", "garnet", "glacier", "harbor", "hazel",
    "heron", "island", "juniper", "lagoon", "lark", "laurel", "maple", "meadow", "otter", "pebble", "pine",
    "quartz", "raven", "reef", "ridge", "robin", "sparrow", "spruce", "summit", "thicket", "tide", "valley",
    "willow", "wren",
)  # fmt: skip
TRIES = 8
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


def new_id() -> str:
    """Return an id for a container."""
    return os.urandom(32).hex()


def check_name(given: str) -> str:
    """Return a container's name; one letter is enough, as in podman. Raises InvalidInput, in docker's words."""
    if given[:1] not in LETTERS or not (LETTERS | frozenset("_.-")).issuperset(given):
        raise InvalidInput(f"invalid container name ({given}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return given


def invent_name(taken: Callable[[str], bool]) -> str:
    """Return a free quality_thing name; after some tries with a number."""
    for _ in range(TRIES):
        name = f"{choose(QUALITIES)}_{choose(THINGS)}"
        if not taken(name):
            return name
    return f"{choose(QUALITIES)}_{choose(THINGS)}_{os.urandom(4).hex()}"


def choose(words: Sequence[str]) -> str:
    """Return one of some words by chance; the random module would load much more than that."""
    return words[int.from_bytes(os.urandom(4), "big") % len(words)]
