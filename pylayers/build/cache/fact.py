"""What a step was made from, in a few bytes: kept with its cache record, so that --explain can tell what changed.

Contents, commands and the values of variables enter as short digests, never as themselves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from blake3 import blake3

from pylayers.build.cache.key import pack_texts
from pylayers.build.session import BuildSession
from pylayers.build.state import StageState
from pylayers.dockerfile import instructions as df

DIGEST_BYTES = 8  # enough to tell two values of one name apart

Facts = Mapping[str, Any]


def shorten(content: bytes) -> str:
    """Return a short digest (hex)."""
    return blake3(content).hexdigest(length=DIGEST_BYTES)


def chain_fact(state: StageState) -> str:
    """Return what tells one history of layers from another."""
    return (state.chain_id or "scratch").removeprefix("sha256:")[:16]


def place_facts(session: BuildSession, state: StageState, instruction: df.Instruction) -> dict[str, Any]:
    """Say where a step stands: its Dockerfile and line, the tree below (as keys know it) and that tree's history."""
    parent = session.trees.identity(state.diff_ids)
    options = session.options
    file = os.path.realpath(options.dockerfile or options.context / "Dockerfile")
    return {
        "file": shorten(os.fsencode(file)),
        "line": instruction.span.line,
        "parent": shorten(parent),
        "chain": chain_fact(state),
    }


def copy_facts(
    session: BuildSession,
    state: StageState,
    instruction: df.Copy | df.Add,
    destination: str,
    options: Sequence[str],
    inputs: Sequence[tuple[str, bytes]],
) -> Facts:
    """Describe a COPY or ADD by what its key is made of."""
    return {
        **place_facts(session, state, instruction),
        "sources": list(instruction.sources),
        "destination": destination,
        "options": list(options),
        "inputs": [[name, digest.hex()[: 2 * DIGEST_BYTES]] for name, digest in inputs],
    }


def run_facts(
    session: BuildSession,
    state: StageState,
    instruction: df.Instruction,
    command: Sequence[str],
    environment: Sequence[str],
    working_dir: str,
    user: str,
    options: Sequence[str],
    inputs: Sequence[tuple[str, bytes]],
) -> Facts:
    """Describe a RUN by what its key is made of; the arguments from command on are run_key's."""
    variables = (entry.partition("=") for entry in environment)
    return {
        **place_facts(session, state, instruction),
        "command": shorten(pack_texts(command)),
        "environment": {name: shorten(value.encode(errors="surrogateescape")) for name, _, value in variables},
        "working_dir": working_dir,
        "user": user,
        "options": list(options),
        "inputs": [[name, digest.hex()[: 2 * DIGEST_BYTES]] for name, digest in inputs],
    }


def workdir_facts(
    session: BuildSession, state: StageState, instruction: df.Instruction, path: str, user: str
) -> Facts:
    """Describe a WORKDIR."""
    return {**place_facts(session, state, instruction), "destination": path, "user": user}


def configure_facts(session: BuildSession, state: StageState, instruction: df.Instruction, config: bytes) -> Facts:
    """Describe a step that only changes the configuration; `config` is what its key has of it."""
    return {**place_facts(session, state, instruction), "parent": chain_fact(state), "config": shorten(config)}
