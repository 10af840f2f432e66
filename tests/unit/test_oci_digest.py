from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from pylayers.errors import InvalidInput
from pylayers.oci.chain import chain_id, chain_ids, extend_chain
from pylayers.oci.digest import (
    SMALL_BYTES,
    check_digest,
    digest_from_hex,
    digest_hex,
    digest_of,
    hex_of,
    is_digest,
)

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_digest_of_known_content() -> None:
    assert digest_of(b"") == EMPTY
    assert digest_from_hex(digest_hex(EMPTY)) == EMPTY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        EMPTY[:-1],
        EMPTY + "0",
        EMPTY.upper(),
        "sha512:" + "0" * 128,
        EMPTY + "\n",
        "sha256:../" + "0" * 61,
    ],
)
def test_what_is_no_digest(text: str) -> None:
    assert not is_digest(text)
    with pytest.raises(InvalidInput, match="layers"):
        check_digest(text, "layers[0].digest")
    with pytest.raises(InvalidInput):
        digest_hex(text)


def test_chain_ids_follow_the_specification() -> None:
    a, b, c = (digest_of(name) for name in (b"a", b"b", b"c"))
    ab = "sha256:" + hashlib.sha256(f"{a} {b}".encode()).hexdigest()
    abc = "sha256:" + hashlib.sha256(f"{ab} {c}".encode()).hexdigest()
    assert chain_ids([a, b, c]) == [a, ab, abc]
    assert chain_id([a, b, c]) == abc == extend_chain(ab, c)
    assert chain_id([a]) == a
    with pytest.raises(InvalidInput):
        chain_id([])
    with pytest.raises(InvalidInput):
        chain_ids([a, "b"])


@pytest.mark.parametrize("length", [0, 1, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 1 << 20])
def test_both_ways_to_hash_agree(length: int) -> None:
    content = bytes(range(251)) * (length // 251 + 1)
    wanted = hashlib.sha256(content[:length]).hexdigest()
    assert hex_of(content[:length]) == hex_of(memoryview(content)[:length]) == wanted
    assert digest_of(bytearray(content[:length])) == f"sha256:{wanted}"


def test_a_short_digest_leaves_openssl_alone() -> None:
    """Its loading would be the longest part of an unchanged rebuild's start."""
    script = "import sys, pylayers.oci.digest as d; d.hex_of(b'x'); print('_hashlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
