"""--exclude and --parents: which paths below a source are copied."""

from __future__ import annotations

import pytest

from pylayers.build.source.pathfilter import make_filter, split_pivot
from pylayers.errors import InvalidInput

FILES = ("a.md", "b.txt", "sub/a.md", "sub/c.txt", "sub/deep/a.md", "node_modules/q/z")


def taken(include: str, *exclude: str) -> set[str]:
    chosen = make_filter(include, exclude)
    if chosen is None:
        return set(FILES)
    found = set()
    for path in FILES:
        above = path.rpartition("/")[0]
        parents = [above[:at] for at in range(len(above)) if above[at] == "/"] + ([above] if above else [])
        entered = all(chosen.takes(one, True) or chosen.may_contain(one) for one in parents)
        if entered and chosen.takes(path, False):
            found.add(path)
    return found


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        (["*.md"], {"a.md"}),
        (["**/*.md"], {"a.md", "sub/a.md", "sub/deep/a.md"}),
        (["sub"], {"sub/a.md", "sub/c.txt", "sub/deep/a.md"}),
        (["sub/"], {"sub/a.md", "sub/c.txt", "sub/deep/a.md"}),
        (["./sub"], {"sub/a.md", "sub/c.txt", "sub/deep/a.md"}),
        (["/sub"], set()),
        (["s/sub"], set()),
        (["sub/deep/a.md"], {"sub/deep/a.md"}),
        (["sub/../a.md"], {"a.md"}),
        (["**"], set(FILES)),
        (["!sub"], set()),
        (["sub", "!sub/c.txt"], {"sub/a.md", "sub/deep/a.md"}),
        (["**", "!**/c.txt"], set(FILES) - {"sub/c.txt"}),
        (["", " "], set()),
    ],
)
def test_exclude(patterns: list[str], gone: set[str]) -> None:
    assert set(FILES) - taken("", *patterns) == gone


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("sub/c.txt", {"sub/c.txt"}),
        ("sub", {"sub/a.md", "sub/c.txt", "sub/deep/a.md"}),
        ("*/*.md", {"sub/a.md"}),
        ("**/a.md", {"a.md", "sub/a.md", "sub/deep/a.md"}),
        ("**", set(FILES)),
        ("sub/*/a.md", {"sub/deep/a.md"}),
        ("nothing/*", set()),
    ],
)
def test_include(pattern: str, found: set[str]) -> None:
    assert taken(pattern) == found


def test_include_and_exclude() -> None:
    assert taken("**/a.md", "sub/deep") == {"a.md", "sub/a.md"}


@pytest.mark.parametrize(
    ("source", "split"),
    [
        ("x/y/f", ("/", "x/y/f")),
        ("./x/y", ("/", "x/y")),
        ("/x/y", ("/", "x/y")),
        ("x/./y/f", ("x", "y/f")),
        ("./x/./y", ("./x", "y")),
        ("*/./y", ("*", "y")),
        ("x/./", ("x", "")),
        (".", ("/", "")),
        ("../x", ("/", "x")),
    ],
)
def test_pivots(source: str, split: tuple[str, str]) -> None:
    assert split_pivot(source) == split


@pytest.mark.parametrize("pattern", ["[", "!", "a[b"])
def test_refuses_malformed_patterns(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="excludepatterns"):
        make_filter("", [pattern])


def test_only_what_may_hide_something_is_entered() -> None:
    plain = make_filter("", ["sub"])
    taking_back = make_filter("", ["sub", "!sub/c.txt"])
    leading = make_filter("sub/c.txt", [])
    assert plain is not None
    assert taking_back is not None
    assert leading is not None
    assert not plain.enters
    assert not plain.may_contain("sub")
    assert taking_back.enters
    assert taking_back.may_contain("sub")
    assert leading.enters
    assert leading.may_contain("sub")
    assert not leading.may_contain("node_modules")
