from __future__ import annotations

import pytest

from pylayers.errors import InvalidInput
from pylayers.oci.platform import Platform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"),
        ("arm64", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("LINUX/AMD64/V3", "linux/amd64/v3"),
        ("windows", "windows/amd64"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/i386", "linux/386"),
    ],
)
def test_parse(text: str, expected: str) -> None:
    assert str(Platform.parse(text)) == expected
    assert Platform.parse(expected) == Platform.parse(text)


@pytest.mark.parametrize("text", ["", "/", "linux/", "linux/amd64/v1/x", "linux/amd 64", "linux/amd64\n"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(InvalidInput):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("mine", "offered", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm/v7", "linux/arm/v6", 1),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/amd64/v3", "linux/amd64", 2),
        ("linux/amd64", "linux/amd64/v3", None),
        ("linux/amd64", "linux/arm64", None),
        ("linux/amd64", "windows/amd64", None),
    ],
)
def test_rank(mine: str, offered: str, rank: int | None) -> None:
    assert Platform.parse(mine).rank(Platform.parse(offered)) == rank


def test_from_machine() -> None:
    assert str(Platform.from_machine("x86_64")) == "linux/amd64"
    assert str(Platform.from_machine("aarch64")) == "linux/arm64"
