"""SHA-256 against FIPS 180-4's own examples, its text in Python, and hashlib."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import random
import struct
import threading

import pytest

from pylayers._native import sha256

PRIMES = [number for number in range(2, 312) if all(number % smaller for smaller in range(2, number))]
WORD = 0xFFFFFFFF
VECTORS = [
    (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (
        b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
    ),
    (
        b"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
        "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
    ),
    (b"a" * 1_000_000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
]
KERNELS = pytest.mark.parametrize("kernel", sha256.kernels())


def find_root(number: int, degree: int) -> int:
    """Find the greatest integer whose power is at most number."""
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= number else (low, middle - 1)
    return low


START = [find_root(prime << 64, 2) & WORD for prime in PRIMES[:8]]  # 32 bits behind the point of the square roots
CONSTANTS = [find_root(prime << 96, 3) & WORD for prime in PRIMES[:64]]


def turn(word: int, count: int) -> int:
    return (word >> count | word << (32 - count)) & WORD


def absorb(state: list[int], block: bytes) -> list[int]:
    """Take one block into a state, by section 6.2.2 of FIPS 180-4."""
    w = list(struct.unpack(">16I", block))
    for t in range(16, 64):
        s0 = turn(w[t - 15], 7) ^ turn(w[t - 15], 18) ^ w[t - 15] >> 3
        s1 = turn(w[t - 2], 17) ^ turn(w[t - 2], 19) ^ w[t - 2] >> 10
        w.append((s1 + w[t - 7] + s0 + w[t - 16]) & WORD)
    a, b, c, d, e, f, g, h = state
    for t in range(64):
        t1 = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + (e & f ^ ~e & WORD & g) + CONSTANTS[t] + w[t]
        t2 = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = (t1 + t2) & WORD, a, b, c, (d + t1) & WORD, e, f, g
    return [(before + after) & WORD for before, after in zip(state, (a, b, c, d, e, f, g, h), strict=True)]


def list_states(data: bytes, every_bytes: int) -> bytes:
    """Give the states after each every_bytes bytes."""
    state, found = START, b""
    for at in range(64, len(data) + 1, 64):
        state = absorb(state, data[at - 64 : at])
        if at % every_bytes == 0:
            found += struct.pack(">8I", *state)
    return found


@KERNELS
@pytest.mark.parametrize(("message", "digest"), VECTORS)
def test_examples_of_the_standard(kernel: str, message: bytes, digest: str) -> None:
    hasher = sha256.Sha256(kernel=kernel)
    hasher.update(message)
    assert hasher.digest().hex() == digest
    assert hasher.states == b""


@KERNELS
@pytest.mark.parametrize("every_bytes", [64, 128, 192, 1024])
def test_states_are_those_of_the_standard(kernel: str, every_bytes: int) -> None:
    data = random.Random(every_bytes).randbytes(5000)
    hasher = sha256.Sha256(every_bytes, kernel)
    hasher.update(data)
    assert hasher.states == list_states(data, every_bytes)
    assert len(hasher.states) == 5000 // every_bytes * 32


@KERNELS
def test_every_length_around_the_padding(kernel: str) -> None:
    data = random.Random(1).randbytes(400)
    for length in range(len(data)):
        hasher = sha256.Sha256(kernel=kernel)
        hasher.update(data[:length])
        assert hasher.digest() == hashlib.sha256(data[:length]).digest()


@KERNELS
def test_a_digest_does_not_end_a_hash(kernel: str) -> None:
    hasher = sha256.Sha256(64, kernel)
    for length in range(200):
        assert hasher.digest() == hashlib.sha256(b"x" * length).digest()
        hasher.update(b"x")
    assert hasher.states == list_states(b"x" * 200, 64)


@KERNELS
def test_a_message_at_the_limit_of_the_length_field(kernel: str) -> None:
    """Only a resumed hash comes so far; its last block counts the bits before it."""
    every_bytes = (1 << 61) - 64
    hasher = sha256.Sha256.resume(bytes(32), every_bytes, kernel)
    hasher.update(b"y" * 63)
    with pytest.raises(ValueError, match=r"less than 2\*\*61 bytes"):
        hasher.update(b"y")
    last = b"y" * 63 + b"\x80" + bytes(56) + (((1 << 61) - 1) * 8).to_bytes(8, "big")
    state = absorb(absorb([0] * 8, last[:64]), last[64:])
    assert hasher.digest() == struct.pack(">8I", *state)
    with pytest.raises(ValueError, match="so many bytes"):
        sha256.Sha256.resume(bytes(64), every_bytes, kernel)


def test_any_contiguous_buffer_is_taken() -> None:
    data = random.Random(2).randbytes(100_000)
    for buffer in (data, bytearray(data), memoryview(data), memoryview(data).cast("I")):
        hasher = sha256.Sha256()
        hasher.update(buffer)
        assert hasher.digest() == hashlib.sha256(data).digest()
    with pytest.raises(BufferError):
        hasher.update(memoryview(data)[::2])
    with pytest.raises(TypeError):
        hasher.update("text")  # type: ignore[arg-type]
    assert hasher.digest() == hashlib.sha256(data).digest()


@KERNELS
def test_a_buffer_may_end_where_no_more_memory_is(kernel: str) -> None:
    """What is fetched ahead of the hashing isn't read: the page behind the buffer may be forbidden."""
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    content = random.Random(4).randbytes(mmap.PAGESIZE)
    pages[: mmap.PAGESIZE] = content
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    view = memoryview(pages)
    one, other = (sha256.Sha256(0, kernel) for _ in range(2))
    one.update(view[: mmap.PAGESIZE])
    assert one.digest() == hashlib.sha256(content).digest()
    one = sha256.Sha256(0, kernel)
    sha256.update_two(one, view[: mmap.PAGESIZE], other, view[64 : mmap.PAGESIZE])
    assert one.digest() == hashlib.sha256(content).digest()
    assert other.digest() == hashlib.sha256(content[64:]).digest()


@pytest.mark.parametrize("every_bytes", [-64, 1, 63, 65, 1 << 61, 1 << 200])
def test_sizes_that_are_no_whole_blocks_are_refused(every_bytes: int) -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        sha256.Sha256(every_bytes)
    with pytest.raises(ValueError, match="multiple of 64"):
        sha256.Sha256.resume(bytes(32), every_bytes)


def test_states_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes for each"):
        sha256.Sha256.resume(bytes(33), 64)
    with pytest.raises(ValueError, match="cannot be 0"):
        sha256.Sha256.resume(bytes(32), 0)
    with pytest.raises(TypeError):
        sha256.Sha256.resume(bytearray(32), 64)  # type: ignore[arg-type]


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no SHA-256 kernel is named 'quick' here; there are .*plain"):
        sha256.Sha256(kernel="quick")


def test_the_fast_kernel_is_the_one_that_is_first() -> None:
    assert sha256.is_fast() is (sha256.kernels()[0] == "fast")
    assert sha256.kernels()[-1] == "plain"


def test_another_thread_runs_meanwhile_and_is_refused() -> None:
    """The loop over bytes leaves the GIL to others, who find the object in use; their asking changes nothing."""
    data, rounds, refused = bytes(8 << 20), 0, False
    hasher = sha256.Sha256(1 << 20)
    while not refused and rounds < 200:
        thread = threading.Thread(target=hasher.update, args=(data,))
        thread.start()
        rounds += 1
        while thread.is_alive() and not refused:
            try:
                hasher.digest()
            except RuntimeError as error:
                refused = "another thread" in str(error)
        thread.join()
    assert refused
    alone = sha256.Sha256(1 << 20)
    for _ in range(rounds):
        alone.update(data)
    assert hasher.digest() == alone.digest()
    assert hasher.states == alone.states


@KERNELS
@pytest.mark.parametrize("every_bytes", [0, 64, 192])
def test_two_side_by_side_at_every_length_around_a_block(kernel: str, every_bytes: int) -> None:
    chance = random.Random(3)
    for length in range(260):
        inputs = chance.randbytes(length), chance.randbytes(200)
        pair = sha256.Sha256(every_bytes, kernel), sha256.Sha256(64, kernel)
        sha256.update_two(pair[0], inputs[0], pair[1], inputs[1][:150])
        sha256.update_two(pair[1], inputs[1][150:], pair[0], b"")
        assert [one.digest() for one in pair] == [hashlib.sha256(one).digest() for one in inputs]
        assert pair[0].states == (list_states(inputs[0], every_bytes) if every_bytes else b"")
        assert pair[1].states == list_states(inputs[1], 64)


def test_what_cannot_be_two_is_refused_and_changes_nothing() -> None:
    hasher, other = sha256.Sha256(), sha256.Sha256(kernel="plain")
    with pytest.raises(ValueError, match="one input"):
        sha256.update_two(hasher, b"a", hasher, b"b")
    with pytest.raises(TypeError):
        sha256.update_two(hasher, b"a", None, b"b")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        sha256.update_two(hasher, b"a", sha256.Sha256(), memoryview(b"abcd")[::2])
    with pytest.raises(TypeError):
        sha256.update_two(hasher, "text", sha256.Sha256(), b"a")  # type: ignore[arg-type]
    limit = sha256.Sha256.resume(bytes(32), (1 << 61) - 64)
    with pytest.raises(ValueError, match=r"less than 2\*\*61 bytes"):
        sha256.update_two(hasher, b"a", limit, b"y" * 64)
    if sha256.is_fast():
        with pytest.raises(ValueError, match="one kernel"):
            sha256.update_two(hasher, b"a", other, b"b")
    assert hasher.digest() == other.digest() == hashlib.sha256().digest()


def test_two_leave_the_gil_to_others_and_neither_can_be_used() -> None:
    data, refused, rounds = bytes(8 << 20), set(), 0
    pair = sha256.Sha256(), sha256.Sha256()
    while len(refused) < 4 and rounds < 200:
        thread = threading.Thread(target=sha256.update_two, args=(pair[0], data, pair[1], data))
        thread.start()
        rounds += 1
        while thread.is_alive() and len(refused) < 4:
            for number, one in enumerate(pair):
                for way in (one.digest, lambda one=one: sha256.update_two(sha256.Sha256(), b"", one, b"")):
                    try:
                        way()
                    except RuntimeError as error:
                        if "another thread" in str(error):
                            refused.add((number, way == one.digest))
        thread.join()
    assert len(refused) == 4
    alone = sha256.Sha256()
    for _ in range(rounds):
        alone.update(data)
    assert [one.digest() for one in pair] == [alone.digest()] * 2
