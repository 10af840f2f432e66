"""Any way of cutting an input, and of going on with it later, gives hashlib's digest and the same states."""

from __future__ import annotations

import hashlib
import random
from itertools import zip_longest

from hypothesis import given, settings
from hypothesis import strategies as st

from pylayers._native import sha256

data = st.one_of(
    st.binary(max_size=500),
    st.builds(lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 1 << 32), st.integers(0, 20_000)),
)
kernels = st.sampled_from(sha256.kernels())
every = st.sampled_from([64, 128, 192, 320, 1024, 4096])
cuts = st.lists(st.one_of(st.integers(0, 20_000), st.integers(0, 300).map(lambda blocks: blocks * 64)), max_size=8)


def split(content: bytes, places: list[int]) -> list[bytes]:
    places = sorted(min(place, len(content)) for place in places)
    return [content[start:end] for start, end in zip([0, *places], [*places, len(content)], strict=True)]


def hash_pieces(hasher: sha256.Sha256, pieces: list[bytes]) -> sha256.Sha256:
    for piece in pieces:
        hasher.update(piece)
    return hasher


@settings(deadline=None, max_examples=300)
@given(data, cuts, every, kernels)
def test_pieces_give_the_digest_and_the_states_of_the_whole(
    content: bytes, places: list[int], every_bytes: int, kernel: str
) -> None:
    hasher = hash_pieces(sha256.Sha256(every_bytes, kernel), split(content, places))
    assert hasher.digest() == hashlib.sha256(content).digest()
    assert len(hasher.states) == len(content) // every_bytes * 32
    whole = hash_pieces(sha256.Sha256(every_bytes, "plain"), [content])
    assert hasher.states == whole.states


@settings(deadline=None, max_examples=100)
@given(data, cuts, every, kernels)
def test_a_hash_goes_on_from_each_of_its_states(
    content: bytes, places: list[int], every_bytes: int, kernel: str
) -> None:
    states = hash_pieces(sha256.Sha256(every_bytes), [content]).states
    for count in range(len(states) // 32 + 1):
        hasher = sha256.Sha256.resume(states[: count * 32], every_bytes, kernel)
        assert hasher.states == states[: count * 32]
        hash_pieces(hasher, split(content[count * every_bytes :], places))
        assert hasher.digest() == hashlib.sha256(content).digest()
        assert hasher.states == states


@settings(deadline=None, max_examples=100)
@given(data, data, every)
def test_what_parts_after_a_state_is_hashed_from_there(first: bytes, second: bytes, every_bytes: int) -> None:
    """The use of it all: the states of one input serve another that begins alike."""
    states = hash_pieces(sha256.Sha256(every_bytes), [first]).states
    whole = len(first) // every_bytes * every_bytes
    resumed = hash_pieces(sha256.Sha256.resume(states, every_bytes), [second])
    assert resumed.digest() == hashlib.sha256(first[:whole] + second).digest()


@settings(deadline=None, max_examples=100)
@given(data)
def test_the_state_after_a_padded_message_is_its_digest(content: bytes) -> None:
    padded = content + b"\x80" + bytes(-(len(content) + 9) % 64) + (len(content) * 8).to_bytes(8, "big")
    hasher = hash_pieces(sha256.Sha256(64), [padded])
    assert hasher.states[-32:] == hashlib.sha256(content).digest()


@settings(deadline=None, max_examples=300)
@given(data, data, cuts, cuts, every, st.one_of(st.just(0), every), kernels)
def test_two_inputs_side_by_side_are_those_one_after_the_other(
    one: bytes, other: bytes, one_cuts: list[int], other_cuts: list[int], one_every: int, other_every: int, kernel: str
) -> None:
    """Pieces of any lengths meet, at any place of their blocks; where one input has ended the other goes on."""
    first, second = sha256.Sha256(one_every, kernel), sha256.Sha256(other_every, kernel)
    for piece, beside in zip_longest(split(one, one_cuts), split(other, other_cuts), fillvalue=b""):
        sha256.update_two(first, piece, second, beside)
    for hasher, content, every_bytes in ((first, one, one_every), (second, other, other_every)):
        assert hasher.digest() == hashlib.sha256(content).digest()
        assert hasher.states == hash_pieces(sha256.Sha256(every_bytes, "plain"), [content]).states


@settings(deadline=None, max_examples=100)
@given(data, every, kernels)
def test_pieces_from_kept_states_lead_to_the_next(content: bytes, every_bytes: int, kernel: str) -> None:
    """How a tar is verified piece by piece: from each state to the one that follows, two pieces at a time."""
    states = hash_pieces(sha256.Sha256(every_bytes, "plain"), [content]).states
    known = [states[at : at + 32] for at in range(0, len(states), 32)]
    pieces = [content[at : at + every_bytes] for at in range(0, len(content), every_bytes)]
    for at in range(2, len(known), 2):
        pair = [sha256.Sha256.resume(known[one - 1], every_bytes, kernel) for one in (at - 1, at)]
        sha256.update_two(pair[0], pieces[at - 1], pair[1], pieces[at])
        assert [one.states[32:] for one in pair] == known[at - 1 : at + 1]
