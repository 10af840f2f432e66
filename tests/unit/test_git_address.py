"""Which sources of an ADD are git addresses, and what names downloads get."""

from __future__ import annotations

import pytest

from pylayers.build.source.git import GitAddress, parse_git
from pylayers.build.source.remote import name_from_url, read_time
from pylayers.errors import InvalidInput


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://h/r.git", GitAddress("https://h/r.git")),
        ("https://h/r.git#v1", GitAddress("https://h/r.git", "v1")),
        ("https://h/r.git#:d/e", GitAddress("https://h/r.git", "", "d/e")),
        ("git://h/r#main:d", GitAddress("git://h/r", "main", "d")),
        ("ssh://git@h:22/r", GitAddress("ssh://git@h:22/r")),
        ("git@h:o/r.git#x", GitAddress("git@h:o/r.git", "x")),
        ("https://h/r.git?tag=v1&subdir=d", GitAddress("https://h/r.git", "refs/tags/v1", "d")),
        ("https://h/r.git?branch=b", GitAddress("https://h/r.git", "refs/heads/b")),
        ("https://h/r.git?ref=x&checksum=ab", GitAddress("https://h/r.git", "x", "", "ab")),
        ("https://h/r.git?keep-git-dir=1&submodules=false", GitAddress("https://h/r.git", "", "", "", True, False)),
        ("https://h/r.tar.gz", None),
        ("file:///r.git", None),
        ("a@b", None),
        ("plain.git", None),
    ],
)
def test_git_addresses(source: str, expected: GitAddress | None) -> None:
    assert parse_git(source) == expected


@pytest.mark.parametrize("query", ["?nope=1", "?ref=a&tag=b", "?ref=a&ref=b", "?keep-git-dir=perhaps", "?ref=a#b"])
def test_queries_that_say_nothing(query: str) -> None:
    with pytest.raises(InvalidInput):
        parse_git(f"https://h/r.git{query}")


@pytest.mark.parametrize(
    ("url", "name"),
    [("http://h/a%20b?x=y", "a b"), ("http://h/", "__unnamed__"), ("http://h", "__unnamed__"), ("http://h/d/f#x", "f")],
)
def test_names_of_downloads(url: str, name: str) -> None:
    assert name_from_url(url) == name


def test_times_of_downloads() -> None:
    assert read_time("Thu, 01 Jan 1970 00:01:40 GMT") == 100
    assert read_time("yesterday") == 0
    assert read_time("") == 0
