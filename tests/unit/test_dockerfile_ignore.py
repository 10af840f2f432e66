""".dockerignore and Go's wildcards."""

from __future__ import annotations

import pytest

from pylayers.dockerfile import ignore, match
from pylayers.errors import InvalidInput


@pytest.mark.parametrize(
    ("rules", "excluded", "included"),
    [
        ("a", ["a", "a/b", "a/b/c"], ["b/a", "ab", ""]),
        ("/a/", ["a", "a/b"], ["b/a"]),
        ("./x/../a", ["a"], ["x"]),
        ("*.o", ["x.o", ".o", "x.o/y"], ["d/x.o", "x.oo"]),
        ("*/t*", ["d/t", "d/temp/x"], ["t", "a/b/t"]),
        ("t?", ["ta", "tb/x"], ["t", "tab"]),
        ("**/*.o", ["x.o", "a/b/x.o"], ["x.c"]),
        ("**/n", ["n", "a/n", "a/b/n/c"], ["an/x", "a/nn"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "b/a/c"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z/y"], ["a", "az"]),
        ("**", ["a", "a/b"], [""]),
        ("*\n!a", ["b", "b/a"], ["a", "a/b"]),
        ("!a\n*", ["a", "b"], []),
        ("*\n!a/b\na/b/c", ["a", "x", "a/b/c", "a/c"], ["a/b", "a/b/d"]),
        ("*.md\n!R*.md\nR-secret.md", ["x.md", "R-secret.md"], ["README.md"]),
        ("# a\n #b\n\n  c  \n\\#d", ["#b", "c", "#d"], ["a", "# a"]),
        ("! a\n", [], ["a"]),
        ("[a-c]x\n[^0-9]y", ["ax", "cx", "zy"], ["dx", "1y"]),
        ("a.b+(c)", ["a.b+(c)"], ["axb+(c)"]),
        ("\ufeffa\r\nb\r\n", ["a", "b"], ["a\r"]),
        ("*a*a*a*b", ["aaab", "xaxaxab"], ["aaa", "a/a/a/b"]),
        ("**/a*/**/b*/c", ["a/b/c", "x/aa/y/z/bb/c"], ["a/c", "a/b/d"]),
    ],
)
def test_rules(rules: str, excluded: list[str], included: list[str]) -> None:
    parsed = ignore.parse(rules)
    assert [path for path in excluded if not parsed.excluded(path, False)] == []
    assert [path for path in included if parsed.excluded(path, False)] == []
    assert [path for path in excluded if not parsed.excluded(path.encode(), True)] == []


@pytest.mark.parametrize(
    ("rules", "directory", "expected"),
    [
        ("node_modules", "node_modules", False),
        ("node_modules", "src", True),
        ("*\n!src", "src", True),
        ("*\n!src", "other", False),
        ("*\n!a/b/c", "a", True),
        ("*\n!a/b/c", "a/b", True),
        ("*\n!a/b/c", "a/x", False),
        ("*\n!*.md", "docs", False),
        ("*\n!**/*.md", "docs", True),
        ("*\n!*/keep", "x", True),
        ("*\n!*/keep", "x/y", False),
        ("!a/x\na", "a", False),
        ("x\n!x/**", "x", True),
    ],
)
def test_directories_that_can_be_skipped(rules: str, directory: str, expected: bool) -> None:
    assert ignore.parse(rules).may_contain(directory) is expected


@pytest.mark.parametrize("rules", ["!", "ok\n[a", "a\\", "[]", "[a-]", "[^]"])
def test_malformed_patterns_name_their_line(rules: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ignore.parse(rules)
    assert caught.value.span is not None
    assert caught.value.span.line == rules.count("\n") + 1


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("abc", "abc", True), ("*", "abc", True), ("*c", "abc", True), ("a*", "a", True), ("a*", "ab/c", False),
        ("a*/b", "abc/b", True), ("a*/b", "a/c/b", False), ("a*b*c*d*e*/f", "axbxcxdxe/f", True),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", False), ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("a*b?c*x", "abxbbxdbxebxczzy", False), ("ab[c]", "abc", True), ("ab[b-d]", "abc", True),
        ("ab[e-g]", "abc", False), ("ab[^c]", "abc", False), ("ab[^e-g]", "abc", True), ("a\\*b", "a*b", True),
        ("a\\*b", "ab", False), ("a?b", "a☺b", True), ("a[^a]b", "a☺b", True), ("a???b", "a☺b", False),
        ("[a-ζ]*", "α", True), ("*[a-ζ]", "A", False), ("a?b", "a/b", False), ("a*b", "a/b", False),
        ("[\\]a]", "]", True), ("[\\-]", "-", True), ("[x\\-]", "x", True), ("[\\-x]", "a", False),
        ("*x", "xxx", True), ("", "", True), ("", "a", False), ("[c-a]", "b", False),
    ],
)  # fmt: skip
def test_match_as_go_does(pattern: str, name: str, expected: bool) -> None:
    assert match.match(pattern, name) is expected


@pytest.mark.parametrize("pattern", ["[", "[]a]", "[-]", "[x-]", "[-x]", "a[", "\\", "[a-b-c]", "[^", "[^bc", "*["])
def test_match_refuses_what_go_refuses(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="syntax error in pattern"):
        match.match(pattern, "a")


def test_wildcards_by_component() -> None:
    assert match.split_components("/a/./b\\*/c*/d") == (["a", "b*"], ["c*", "d"])
    assert match.split_components("a/b") == (["a", "b"], [])
    assert list(match.filter_names("*.[ch]", ["a.c", "b.h", "c.o", ".c"])) == ["a.c", "b.h", ".c"]
    assert not match.has_wildcards("a\\*b")
    assert match.has_wildcards("a\\\\*")
