"""Random tars in random pieces, and random damage to them: the whole scan's table or none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native.tarfeed import TableFeed
from tests.oracle.test_tarfeed import Table, model
from tests.property.test_tarscan import FORMATS, GOOD, MEMBERS, Member, mend, pack


def feed(tar: bytes, chosen: random.Random) -> Table | None:
    """Feed a tar in pieces of random lengths, short ones mostly; each is overwritten afterwards."""
    table = TableFeed(blake3, 10_000)
    at = 0
    while at < len(tar):
        length = chosen.choice((1, 100, 512, 600, 2000, 100_000))
        piece = bytearray(tar[at : at + chosen.randint(1, length)])
        at += len(piece)
        table.take(piece)
        piece[:] = b"\xa5" * len(piece)
    return table.finish()


@settings(deadline=None, max_examples=400)
@given(st.lists(MEMBERS, max_size=12), FORMATS, st.integers(0, 1 << 32))
def test_a_random_tar_in_random_pieces(members: list[Member], form: int, seed: int) -> None:
    tar = pack(members, form)
    assert feed(tar, random.Random(seed)) == model(tar)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_damaged_tar_gives_the_whole_scans_table_or_none(path: Path) -> None:
    content = path.read_bytes()
    chosen = random.Random(path.stem)
    declined = 0
    for _ in range(600):
        tar = bytearray(content)
        for _ in range(chosen.randint(1, 4)):
            block = chosen.randrange(min(len(tar) // 512, 40 if chosen.random() < 0.8 else 10**6))
            tar[block * 512 + chosen.randrange(512)] = chosen.choice([0, 255, 128, 32, 47, 48, 55, 57])
            if chosen.random() < 0.5:
                mend(tar, block)
        if chosen.random() < 0.3:
            del tar[chosen.randrange(len(tar)) :]
        found = feed(bytes(tar), chosen)
        declined += found is None
        assert found is None or found == model(bytes(tar))
    assert declined


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=1, max_size=1500).filter(any), st.integers(0, 1 << 32))
def test_noise_is_declined(noise: bytes, seed: int) -> None:
    found = feed(noise, random.Random(seed))
    assert found is None or (not any(noise[:1024]) and found == model(noise))
