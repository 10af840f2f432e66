"""Variables in words: BuildKit's rules."""

from __future__ import annotations

import pytest

from pylayers.dockerfile.expand import MAX_EXPANDED_LENGTH, Mode, expand_word, expand_words, process
from pylayers.errors import InvalidInput

VALUES = {
    "FOO": "xxyy", "EMPTY": "", "PATHS": "/tmp/tmp/bar.txt", "STARS": "a***yy*", "WORDS": "one  two", "X": "x",
    "MARKS": "???y", "LINES": "ab\ncb",
}  # fmt: skip


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("plain", "plain"),
        ("$FOO", "xxyy"),
        ("${FOO}", "xxyy"),
        ("a$FOO.b", "axxyy.b"),
        ("$", "$"),
        ("a$", "a$"),
        ("$,x", "$,x"),
        ("$NOPE", ""),
        ("$FOOBAR", ""),
        ("'$FOO'", "$FOO"),
        ('"$FOO"', "xxyy"),
        ('"a b"', "a b"),
        (r"\$FOO", "$FOO"),
        (r"a\\b", r"a\b"),
        (r'"a\b"', r"a\b"),
        (r'"a\"b"', 'a"b'),
        (r"'a\b'", r"a\b"),
        ("a\\", "a"),
        ("$1x", "x"),
        ("$12", ""),
        ("$@x", "x"),
        ("${FOO:-d}", "xxyy"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${NOPE-d}", "d"),
        ("${NOPE:-$FOO}", "xxyy"),
        ("${NOPE:-${NOPE2:-deep}}", "deep"),
        ("${FOO:+set}", "set"),
        ("${EMPTY:+set}", ""),
        ("${EMPTY+set}", "set"),
        ("${FOO:?needed}", "xxyy"),
        ("${EMPTY?needed}", ""),
        ("${FOO#x}", "xyy"),
        ("${FOO##*x}", "yy"),
        ("${FOO#*x*y}", "y"),
        ("${FOO#*}", "xxyy"),
        ("${FOO##*}", ""),
        ("${FOO%y}", "xxy"),
        ("${FOO%%y*}", "xx"),
        ("${FOO%y*}", "xxy"),
        ("${FOO#$X}", "xyy"),
        ("${FOO%$EMPTY}", "xxyy"),
        (r"${STARS%%\**\*}", "a"),
        (r"${MARKS#?\?}", "?y"),
        ("${PATHS//tmp/x}", "/x/x/bar.txt"),
        ("${PATHS/tmp/x}", "/x/tmp/bar.txt"),
        (r"${PATHS/\/tmp/}", "/tmp/bar.txt"),
        ("${PATHS/*tmp/x}", "x/bar.txt"),
        ("${PATHS//?mp/T}", "/T/T/bar.txt"),
        ("${FOO/$EMPTY/w}", "wxxyy"),
        ("${FOO///}", "xxyy"),
        ("${LINES##*b}", "\ncb"),
        ("${LINES//*b/x}", "x\nx"),
        ("${NOPE/a/b}", ""),
        ("한${FOO}국 $FOO국", "한xxyy국 "),
    ],
)
def test_word_becomes(word: str, expected: str) -> None:
    assert expand_word(word, VALUES) == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("${FOO", "missing '}'"),
        ("${", "missing '}'"),
        ("${}", "bad substitution"),
        ("${:x}", "bad substitution"),
        ("${{FOO}}", "bad substitution"),
        ("${FOO=x}", "unsupported modifier (=)"),
        ("${FOO:=x}", "unsupported modifier (:=)"),
        ("${FOO:x}", "unsupported modifier (:x)"),
        ("${NOPE?is needed}", "NOPE: is needed"),
        ("${EMPTY:?}", "EMPTY: is not allowed to be empty"),
        ("${NOPE:?}", "NOPE: is not allowed to be unset"),
        ("'abc", "matching single-quote"),
        ('"abc', "matching double-quote"),
        ("${FOO/a}", "missing '/' in ${}"),
        ("${FOO/a/b", "missing '}'"),
        (r"${FOO#\x}", r"invalid escape '\x'"),
    ],
)
def test_word_is_refused(word: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        expand_word(word, VALUES)
    assert message in caught.value.message
    assert caught.value.message.startswith("failed to process ")


def test_escape_follows_the_directive() -> None:
    assert expand_word("`$FOO a\\b", VALUES, "`") == "$FOO a\\b"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a b", ["a", "b"]),
        ("a\\ b c", ["a b", "c"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        ("$WORDS", ["one", "two"]),
        ('"$WORDS"', ["one  two"]),
        ("x${WORDS}y", ["xone", "twoy"]),
        ("''", []),
        ("$NOPE a", ["a"]),
        ("  ", []),
    ],
)
def test_words_split_where_no_quote_holds_them(word: str, expected: list[str]) -> None:
    assert expand_words(word, VALUES) == expected


def test_names_without_a_value_are_reported() -> None:
    unmatched: list[str] = []
    expand_word("$A ${B:-x} $FOO ${C+y}", VALUES, unmatched=unmatched)
    assert unmatched == ["A", "B", "C"]
    assert process("$FOO$A", VALUES, Mode()).matched == {"FOO"}


def test_lookup_may_be_a_function() -> None:
    assert expand_word("$abc", str.upper) == "ABC"


def test_heredoc_text_keeps_its_quotes() -> None:
    assert expand_word("'$FOO' \"x\" \\$FOO", VALUES, quotes=False) == "'xxyy' \"x\" $FOO"


def test_unset_names_can_stay_as_written() -> None:
    kept = process("$A ${B} ${C:-d} ${D/x/y}", {}, Mode(keep_unset=True)).text
    assert kept == "$A ${B} ${C:-d} ${D/x/y}"


def test_growth_ends_in_an_error() -> None:
    big = "x" * (MAX_EXPANDED_LENGTH // 8)
    with pytest.raises(InvalidInput, match="expansion is longer"):
        expand_word("$A" * 9, {"A": big})
    with pytest.raises(InvalidInput, match="expansion is longer"):
        expand_word("${A//x/$A}", {"A": "x" * 100_000})


def test_deep_nesting_ends_in_an_error() -> None:
    with pytest.raises(InvalidInput, match="nested deeper"):
        expand_word("${a:-" * 5000 + "}" * 5000, {})
