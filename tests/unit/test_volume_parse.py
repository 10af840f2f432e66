from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylayers.errors import InvalidInput, NotFound
from pylayers.volume.parse import (
    MountRequest,
    check_duplicates,
    parse_mount,
    parse_size,
    parse_tmpfs,
    parse_volume,
    prepare_bind,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data", MountRequest(type="volume", target="/data")),
        ("name:/data", MountRequest(type="volume", source="name", target="/data")),
        (
            "name:/data/../x/:ro,nocopy",
            MountRequest(type="volume", source="name", target="/x", readonly=True, nocopy=True),
        ),
        ("/host:/data", MountRequest(type="bind", source="/host", target="/data", create_source=True)),
        (
            "/host//d/:/data:ro,z,rslave",
            MountRequest(
                type="bind",
                source="/host/d",
                target="/data",
                readonly=True,
                relabel="z",
                propagation="rslave",
                create_source=True,
            ),
        ),
        ("./here:/data:rw", MountRequest(type="bind", source="/base/here", target="/data", create_source=True)),
        ("..:/data", MountRequest(type="bind", source="/", target="/data", create_source=True)),
    ],
)
def test_volume_grammar(text: str, expected: MountRequest) -> None:
    assert parse_volume(text, base=Path("/base")) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid volume specification: ''"),
        ("a:b:c:d", "invalid volume specification: 'a:b:c:d'"),
        (":/data", "invalid volume specification"),
        ("name:relative", "mount path must be absolute"),
        ("relative", "mount path must be absolute"),
        ("name:/", "destination can't be '/'"),
        ("name:/../", "destination can't be '/'"),
        ("a/b:/data", "includes invalid characters for a local volume name"),
        ("x:/data", "includes invalid characters for a local volume name"),
        ("name:/data:sideways", "invalid mode: sideways"),
        ("name:/data:ro,rw", "invalid mode: ro,rw"),
        ("/host:/data:nocopy", "invalid mode: nocopy"),
        ("name:/data:rslave", "bind propagation needs a host path"),
    ],
)
def test_volume_errors(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_volume(text)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("target=/data", MountRequest(type="volume", target="/data")),
        (
            "type=volume,src=name,dst=/data,volume-nocopy",
            MountRequest(type="volume", source="name", target="/data", nocopy=True),
        ),
        ("type=bind,source=/h,destination=/d,ro", MountRequest(type="bind", source="/h", target="/d", readonly=True)),
        ("type=bind,src=/h,dst=/d,readonly=false", MountRequest(type="bind", source="/h", target="/d")),
        (
            "type=bind,src=/h,dst=/d,bind-propagation=shared,bind-recursive=disabled",
            MountRequest(type="bind", source="/h", target="/d", propagation="shared", recursive=False),
        ),
        ('type=bind,"src=/with,comma",dst=/d', MountRequest(type="bind", source="/with,comma", target="/d")),
        (
            "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0700",
            MountRequest(type="tmpfs", target="/t", tmpfs_size_bytes=1 << 20, tmpfs_mode=0o700),
        ),
    ],
)
def test_mount_grammar(text: str, expected: MountRequest) -> None:
    assert parse_mount(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "value is empty"),
        ("type=bind,src=/h", "target is required"),
        ("type=bind,dst=/d", "field Source must not be empty"),
        ("type=bind,src=h,dst=/d", "mount path must be absolute"),
        ("type=nfs,dst=/d", "invalid mount type 'nfs'"),
        ("type=bind,src=/h,dst=/d,tmpfs-size=1m", "cannot mix 'tmpfs-*' options with mount type 'bind'"),
        ("type=tmpfs,src=/h,dst=/d", "field Source must not be specified"),
        ("type=tmpfs,dst=/d,tmpfs-mode=9", "invalid value for tmpfs-mode: 9"),
        ("type=bind,src=/h,dst=/d,ro=perhaps", "invalid value for readonly: perhaps"),
        ("type=bind,src=/h,dst=/d,bind-propagation=up", "invalid propagation: 'up'"),
        ("colour=red,dst=/d", "unexpected key 'colour' in 'colour=red'"),
        ("type,dst=/d", "invalid field 'type' must be a key=value pair"),
    ],
)
def test_mount_errors(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_mount(text)
    assert words in caught.value.message


def test_tmpfs_and_sizes() -> None:
    request = parse_tmpfs("/run:size=64k,mode=755,ro")
    assert (request.tmpfs_size_bytes, request.tmpfs_mode, request.readonly) == (65536, 0o755, True)
    with pytest.raises(InvalidInput, match="invalid tmpfs option"):
        parse_tmpfs("/run:huge=yes")
    assert [parse_size(text) for text in ("5", "5b", "2K", "1.5m", "1GiB")] == [5, 5, 2048, 3 << 19, 1 << 30]
    with pytest.raises(InvalidInput):
        parse_size("five")


def test_two_mounts_on_one_place() -> None:
    with pytest.raises(InvalidInput, match="Duplicate mount point: /d"):
        check_duplicates([parse_volume("aa:/d"), parse_volume("/b:/d/")])


def test_missing_bind_source(tmp_path: Path) -> None:
    missing = tmp_path / "a" / "b"
    with pytest.raises(NotFound, match="bind source path does not exist"):
        prepare_bind(parse_mount(f"type=bind,src={missing},dst=/d"))
    assert not missing.exists()
    prepare_bind(parse_volume(f"{missing}:/d"))
    assert missing.is_dir()


@given(st.text(alphabet="abc/.:,=ro\"'\n zZ", max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_volume, parse_mount, parse_tmpfs):
        try:
            request = parse(text)
        except InvalidInput:
            continue
        assert request.target.startswith("/")
        assert ".." not in request.target.split("/")
        assert request.type != "bind" or request.source.startswith("/")
