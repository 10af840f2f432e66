"""What is kept of a build: its tree, its configuration, its cached steps, or why it was refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Observation = dict[str, Any]
STEP = re.compile(
    r"\[(?:(?P<platform>\w+/\S+) )?(?:(?P<stage>\S+) )?(?P<index>\d+)/(?P<total>\d+)\] (?P<text>.*)", re.DOTALL
)
SHOWN_INSTRUCTIONS = ("RUN ", "COPY ", "ADD ")
SETS = ("ExposedPorts", "Volumes")


def observe_config(document: Mapping[str, Any], base_history: int) -> Observation:
    """Return an image config's parts that are compared: what is empty counts as unset, but [] is not null."""
    given = document.get("config") or {}
    config = {key: value for key, value in given.items() if value is not None and value not in ("", {}, False)}
    for key in SETS:
        if key in config:
            config[key] = sorted(config[key])
    return {
        "config": config,
        "history": [
            [step.get("created_by", ""), "empty" if step.get("empty_layer") else "layer"]
            for step in (document.get("history") or [])[base_history:]
        ],
        "author": document.get("author", ""),
        "platform": "/".join(filter(None, (document["os"], document["architecture"], document.get("variant", "")))),
    }


def read_step(label: str) -> tuple[str, str] | None:
    """Return the stage and the instruction of a step's label, for instructions whose caching is compared."""
    match = STEP.fullmatch(label.strip())
    if match is None or not match["text"].startswith(SHOWN_INSTRUCTIONS):
        return None
    return match["stage"] or "stage-0", match["text"]


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Return every leaf of an observation with its place: `tree /opt/a mode`."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flatten(inner, f"{key} {name}" if key else str(name))
    else:
        yield key, value


def replace_all(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [replace_all(one, change) for one in value]
    if isinstance(value, dict):
        return {change(name): replace_all(one, change) for name, one in value.items()}
    return value
