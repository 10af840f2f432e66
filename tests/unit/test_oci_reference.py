from __future__ import annotations

import pytest

from pylayers.errors import InvalidInput
from pylayers.oci.reference import Reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "whole", "familiar"),
    [
        ("ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("ubuntu:22.04", "docker.io/library/ubuntu:22.04", "ubuntu:22.04"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("index.docker.io/library/ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("user/app", "docker.io/user/app", "user/app"),
        ("library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
        ("host:5000/app", "host:5000/app", "host:5000/app"),
        ("app:5000", "docker.io/library/app:5000", "app:5000"),
        ("ghcr.io/a/b/c@" + DIGEST, "ghcr.io/a/b/c@" + DIGEST, "ghcr.io/a/b/c@" + DIGEST),
        ("a:T_1.x-@" + DIGEST, "docker.io/library/a:T_1.x-@" + DIGEST, "a:T_1.x-@" + DIGEST),
        ("[2001:db8::1]:5000/app", "[2001:db8::1]:5000/app", "[2001:db8::1]:5000/app"),
        ("a__b/c--d/e.f_g", "docker.io/a__b/c--d/e.f_g", "a__b/c--d/e.f_g"),
        ("Host/app", "Host/app", "Host/app"),
    ],
)
def test_parse(text: str, whole: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == whole
    assert reference.familiar == familiar
    assert Reference.parse(whole) == reference
    assert Reference.parse(familiar) == reference
    assert reference.warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "", ":tag", "a:", "a@", "a@sha256:12", "a b", "a//b", "/a", "a/", "-a", "a-", "a..b", "a___b", "a._b", "a\n",
        "Ubuntu", "ghcr.io/Foo", "a:" + "t" * 129, "a:-t", "a:b:c", "-host.io/a", "host:port/a", "ab" * 32,
        "a/" + "b" * 255, "docker.io/", "a@" + DIGEST + "@" + DIGEST, "a@sha256:" + "AB" * 32,
    ],
)  # fmt: skip
def test_parse_refuses(text: str) -> None:
    with pytest.raises(InvalidInput, match="invalid reference"):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ubuntu", "docker.io/library/ubuntu"),
        ("Foo/Bar:Tag", "docker.io/foo/bar:Tag"),
        ("ghcr.io/Foo/bar", "ghcr.io/foo/bar"),
        (" ubuntu ", "docker.io/library/ubuntu"),
    ],
)
def test_lenient_lowers_and_warns(text: str, expected: str) -> None:
    reference = Reference.parse_lenient(text)
    assert str(reference) == expected
    assert len(reference.warnings) == 1
    assert reference == Reference.parse(expected)


def test_lenient_is_silent_for_what_is_right_and_still_refuses_nonsense() -> None:
    assert Reference.parse_lenient("ubuntu:22.04").warnings == ()
    assert Reference.parse_lenient("GHCR.io/a").warnings == ()
    with pytest.raises(InvalidInput):
        Reference.parse_lenient("Ubuntu::x")


def test_strict_error_tells_the_lower_case_name() -> None:
    with pytest.raises(InvalidInput) as caught:
        Reference.parse("ghcr.io/Foo/bar:X")
    assert caught.value.hint == "use 'ghcr.io/foo/bar:X'"


def test_changing_parts() -> None:
    reference = Reference.parse("ubuntu")
    assert reference.with_default_tag().tag == "latest"
    assert reference.with_digest(DIGEST).with_default_tag().tag is None
    assert str(reference.with_tag("1")) == "docker.io/library/ubuntu:1"
    with pytest.raises(InvalidInput):
        reference.with_tag("a b")
