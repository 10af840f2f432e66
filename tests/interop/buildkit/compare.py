"""Compare what pylayers made of a case with what BuildKit made of it; what BuildKit leaves open counts for equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.interop.buildkit.observe import Observation, flatten
from tests.interop.buildkit.tree import Entry, Tree

NOTHING = object()


def compare(own: Observation, docker: Observation, base: Tree) -> list[str]:
    """Return every place where two observations differ, as `place: docker VALUE, pylayers VALUE`.

    Of a refusal the fact counts, and the line where both name one: messages are each engine's own.
    """
    if "refused" in own and "refused" in docker:
        one, other = own["refused"].get("line"), docker["refused"].get("line")
        return [] if one == other or None in (one, other) else [f"refused line: docker {other}, pylayers {one}"]
    if "refused" in own or "refused" in docker:
        who, told = ("pylayers", own) if "refused" in own else ("docker", docker)
        return [f"refused by {who} alone: {told['refused']['message']}"]
    mine, theirs = (dict(flatten(settle(observed, base))) for observed in (own, docker))
    settle_history(mine, theirs)
    found = []
    for place in sorted(mine.keys() | theirs.keys()):
        one, other = mine.get(place, NOTHING), theirs.get(place, NOTHING)
        if one != other and not (place.endswith(" mtime") and "now" in (one, other)):
            found.append(f"{place}: docker {show(other)}, pylayers {show(one)}")
    return found


def settle(observed: Observation, base: Tree) -> Observation:
    """Return an observation without what BuildKit leaves open.

    Layers carry whole seconds, in docker's tars as in ours. A directory of the base that a step only went through has
    the time of that moment in one engine and its own in the other.
    """
    made = dict(observed)
    for part in ("tree", "output"):
        if part in observed:
            made[part] = {
                name: settle_entry(entry)
                for name, entry in observed[part].items()
                if entry.get("type") != "dir" or without_time(entry) != without_time(base.get(name, {}))
            }
    return made


def settle_entry(entry: Mapping[str, Any]) -> Entry:
    """Return an entry with whole seconds."""
    return {key: value.partition(".")[0] if key == "mtime" else value for key, value in entry.items()}


def without_time(entry: Mapping[str, Any]) -> Entry:
    """Return an entry's other attributes."""
    return {key: value for key, value in entry.items() if key != "mtime"}


def settle_history(own: dict[str, Any], docker: dict[str, Any]) -> None:
    """Let a step without changes be empty here where BuildKit writes a layer without content."""
    mine, theirs = own.get("history"), docker.get("history")
    if not isinstance(mine, list) or not isinstance(theirs, list) or len(mine) != len(theirs):
        return
    own["history"] = [
        other if one == [other[0], "empty"] and other[1] == "layer" else one
        for one, other in zip(mine, theirs, strict=True)
    ]


def show(value: object) -> str:
    """Return a value for a message."""
    return "nothing" if value is NOTHING else repr(value)
