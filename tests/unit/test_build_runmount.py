"""RUN --mount as text: every option, BuildKit's defaults and its messages."""

from __future__ import annotations

import pytest

from pylayers.build.run.mount import RunMount, parse_device, parse_mount, source_names, split_fields
from pylayers.errors import InvalidInput, SourceSpan

SPAN = SourceSpan("Dockerfile", 3)
VALUES = {"T": "cache", "D": "/data", "N": "7"}


def expand(word: str) -> str:
    for name, value in VALUES.items():
        word = word.replace(f"${name}", value)
    return word


def parse(text: str, working_dir: str = "/") -> RunMount:
    return parse_mount(text, expand, working_dir)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("target=/x", RunMount(target="/x")),
        ("TARGET=/x", RunMount(target="/x")),
        ("type=bind,src=a/b,dst=/x,from=Stage", RunMount(source="a/b", target="/x", from_name="Stage")),
        ("target=/x,rw", RunMount(target="/x", readonly=False)),
        ("target=/x,readwrite=true", RunMount(target="/x", readonly=False)),
        ("target=/x,rw=false", RunMount(target="/x")),
        ("destination=/x,ro=0", RunMount(target="/x", readonly=False)),
        ("type=cache,target=/x", RunMount(type="cache", target="/x", id="/x", readonly=False)),
        ("type=cache,target=/x/,ro", RunMount(type="cache", target="/x", id="/x")),
        (
            "type=CACHE,id=i,target=/x,sharing=Locked,mode=0700,uid=1,gid=$N",
            RunMount(
                type="cache", target="/x", id="i", readonly=False, sharing="locked", mode=0o700, uid=1, gid=7
            ),
        ),
        ("type=$T,target=$D/x,id=$T-$D", RunMount(type="cache", target="/data/x", id="cache-/data", readonly=False)),
        (
            "type=tmpfs,target=/t,size=64k",
            RunMount(type="tmpfs", target="/t", size_bytes=65536, readonly=False),
        ),
        ("type=secret,id=a", RunMount(type="secret", id="a", target="/run/secrets/a")),
        ("type=secret,id=dir/a", RunMount(type="secret", id="dir/a", target="/run/secrets/a")),
        ("type=secret,source=a,required", RunMount(type="secret", id="a", source="a", target="/run/secrets/a",
                                                   required=True)),
        ("type=secret,target=/zz/E", RunMount(type="secret", id="E", target="/zz/E")),
        ("type=secret,id=a,env=FOO", RunMount(type="secret", id="a", env="FOO")),
        ("type=secret,id=a,env=FOO,target=t", RunMount(type="secret", id="a", env="FOO", target="/t")),
        ("type=ssh", RunMount(type="ssh", id="default")),
        ("type=ssh,id=k,target=rel,required=1", RunMount(type="ssh", id="k", target="rel", required=True)),
        ('"target=/a,b",rw', RunMount(target="/a,b", readonly=False)),
    ],
)  # fmt: skip
def test_options(text: str, expected: RunMount) -> None:
    assert parse(text) == expected


def test_a_relative_target_is_below_the_working_directory() -> None:
    assert parse("target=a/../b", "/w").target == "/w/b"
    assert parse("type=cache,target=c", "/w").id == "/w/c"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=foo,target=/x", 'unsupported mount type "foo"'),
        ("type=cach,target=/x", 'unsupported mount type "cach" (did you mean cache?)'),
        ("typ=cache,target=/x", "unexpected key 'typ' in 'typ=cache' (did you mean type?)"),
        ("taget=/x", "unexpected key 'taget' in 'taget=/x' (did you mean target?)"),
        ("type=cache", 'invalid mount target "/"'),
        ("type=bind", 'invalid mount target "/"'),
        ("target=/x,sharing=locked", "invalid cache sharing set for bind mount"),
        ("type=cache,target=/x,sharing=lockd", 'unsupported sharing value "lockd" (did you mean locked?)'),
        ("type=cache,target=/x,mode=abc", "invalid value abc for mode"),
        ("type=cache,target=/x,mode=789", "invalid value 789 for mode"),
        ("type=cache,target=/x,uid=-1", "invalid value -1 for uid"),
        ("type=cache,target=/x,uid=4294967296", "invalid value 4294967296 for uid"),
        ("type=tmpfs,target=/x,size=foo", "invalid value for size: foo"),
        ("type=cache,target=/x,size=1", "unexpected key 'size' for mount type 'cache'"),
        ("target=/x,required", "unexpected key 'required' for mount type 'bind'"),
        ("required,type=secret,id=a", "unexpected key 'required' for mount type 'bind'"),  # as BuildKit: in order
        ("type=cache,target=/x,rw=maybe", "invalid value for rw: maybe"),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,source=b", "both source and id can't be set"),
        ("type=secret,id=a,from=x", "secret mount should not have a from"),
        ("type=secret,id=a,env", "invalid field 'env' must be a key=value pair"),
        ("type=tmpfs,target=/x,mode=700", 'mode not allowed for "tmpfs" type mounts'),
        ("target=/x,uid=1", 'uid not allowed for "bind" type mounts'),
        ("target", "invalid field 'target' must be a key=value pair"),
        ("", "failed to parse csv mounts: EOF"),
        ('target=/x"y', "failed to parse csv mounts: bare \""),
        ('"target=/x', "failed to parse csv mounts: extraneous or missing"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert caught.value.message.startswith(message)


def test_source_names_are_not_expanded() -> None:
    assert source_names(["from=a,target=/x", "type=cache,FROM=b", "target=/x"], SPAN) == ["a", "b"]
    with pytest.raises(InvalidInput, match="'from' doesn't support variable expansion") as caught:
        source_names(["from=$X,target=/x"], SPAN)
    assert caught.value.span == SPAN


def test_fields_are_split_as_csv() -> None:
    assert split_fields('a,"b,""c""",,d') == ["a", 'b,"c"', "", "d"]
    assert split_fields("a=1,") == ["a=1", ""]
    assert split_fields('"a",') == ["a", ""]


def test_devices() -> None:
    device = parse_device("/dev/null", expand)
    assert (device.name, device.required) == ("/dev/null", False)
    device = parse_device("vendor.com/class=one,required", expand)
    assert (device.name, device.required) == ("vendor.com/class=one", True)
    assert parse_device("name=$D,required=false", expand).name == "/data"
    with pytest.raises(InvalidInput, match="device name is empty"):
        parse_device("required", expand)
