"""Write a tar whole, then from one of its rows on, and compare."""

from __future__ import annotations

import hashlib
from pathlib import Path

from blake3 import blake3

from pylayers._native import tarwrite
from pylayers._native.sha256 import Sha256
from pylayers.store.entry import ENTRY_SIZE_BYTES, SOURCE_STRUCT
from tests.oracle.canonical import Given, check_against_oracle, write_slowly

PAGE_BYTES = 4096
UNUSABLE = SOURCE_STRUCT.pack(-1, 77, 1 << 63, 1 << 63)


def check_resumed(given: Given, first_row: int, folder: Path, align: int = 4096, align_from: int = 65536,
                  direct_from: int = 1 << 62, clone_from: int = tarwrite.CLONE_NEVER) -> Path:  # fmt: skip
    """Hold what is written from first_row on against the whole; give the file, which has none of what is before."""
    fresh = bytes(given.records)
    whole = check_against_oracle(given, folder / "whole", align, align_from, direct_from, clone_from)
    end = len(write_slowly(given.items[:first_row], align, align_from)[0]) - 1024
    start = end // PAGE_BYTES * PAGE_BYTES
    laid = first_row * ENTRY_SIZE_BYTES
    records = bytearray(given.records[:laid] + fresh[laid:])
    sources = UNUSABLE * first_row + given.sources[first_row * SOURCE_STRUCT.size :]
    states = Sha256(PAGE_BYTES)
    states.update(whole[:start])
    hasher = Sha256.resume(states.states, PAGE_BYTES)
    with open(folder / "resumed", "wb") as out:
        out.write(b"\xee" * start)
        out.flush()
        size_bytes, digest = tarwrite.write(
            out.fileno(), records, given.table.heap, sources, lambda: hasher, blake3, align, align_from, direct_from,
            clone_from, first_row=first_row, start_bytes=start, lead=whole[start:end],
        )  # fmt: skip
    written = (folder / "resumed").read_bytes()
    assert written[:start] == b"\xee" * start
    assert written[start:] == whole[start:]
    assert size_bytes == len(whole)
    assert digest == hashlib.sha256(whole).digest()
    assert records == given.records
    states.update(whole[start:])
    assert hasher.states == states.states
    return folder / "resumed"
