from __future__ import annotations

from pathlib import Path

import pytest

from pylayers.errors import InvalidInput, NotFound, Unsupported
from pylayers.oci.config import Healthcheck, History, ImageConfig, RunConfig
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.digest import digest_of
from pylayers.oci.document import decode, encode
from pylayers.oci.manifest import (
    MEDIA_CONFIG,
    MEDIA_DOCKER_LIST,
    MEDIA_DOCKER_MANIFEST,
    MEDIA_INDEX,
    MEDIA_LAYER_TAR,
    MEDIA_MANIFEST,
    Index,
    Manifest,
    layer_compression,
    parse_manifest,
)
from pylayers.oci.platform import Platform

GOLDEN = Path(__file__).parents[1] / "corpus" / "golden"
A, B = digest_of(b"a"), digest_of(b"b")


def make_config() -> ImageConfig:
    return ImageConfig(
        architecture="arm64",
        os="linux",
        variant="v8",
        author="Zoë <zoe@example.org>",
        created="2024-02-03T04:05:06.789Z",
        config=RunConfig(
            user="1000:1000",
            exposed_ports=("53/udp", "80/tcp"),
            env=("PATH=/bin", "EMPTY="),
            entrypoint=("/init", "--"),
            cmd=(),
            volumes=("/data",),
            working_dir="/srv",
            labels={"b": "2", "a": "ünï"},
            stop_signal="SIGTERM",
            stop_timeout_s=0,
            healthcheck=Healthcheck(test=("CMD", "true"), interval_ns=5_000_000_000, retries=3),
            on_build=("RUN true",),
            shell=("/bin/bash", "-c"),
            args_escaped=True,
        ),
        diff_ids=(A, B),
        history=(
            History(created_by="COPY a /", created="2024-02-03T04:05:06Z"),
            History(created_by="ENV X=1", empty_layer=True),
            History(created_by="RUN b", comment="x", author="y"),
        ),
    )


def make_manifest() -> Manifest:
    return Manifest(
        config=Descriptor(MEDIA_CONFIG, A, 7),
        layers=(Descriptor(MEDIA_LAYER_TAR, B, 1 << 40, annotations={"k": "v"}, urls=("https://example.org/b",)),),
        annotations={"org.opencontainers.image.title": "ä"},
    )


def make_index() -> Index:
    return Index(
        (
            Descriptor(MEDIA_MANIFEST, A, 1, platform=Platform("linux", "arm", "v6")),
            Descriptor(MEDIA_MANIFEST, B, 2, platform=Platform("linux", "arm", "v7", "5", ("x",))),
        )
    )


@pytest.mark.parametrize(
    ("name", "made"),
    [("config.json", make_config()), ("manifest.json", make_manifest()), ("index.json", make_index())],
)
def test_golden_bytes_and_round_trip(name: str, made: ImageConfig | Manifest | Index) -> None:
    content = (GOLDEN / name).read_bytes()
    assert made.to_json() == content
    assert type(made).from_json(content) == made
    assert made.digest == digest_of(content)


def test_config_keeps_unset_and_empty_apart() -> None:
    assert b"Cmd" not in RunConfig().to_json()
    assert RunConfig.from_json(RunConfig(cmd=()).to_json()).cmd == ()
    assert RunConfig.from_json(b'{"Cmd":null,"Env":null,"Labels":null,"Volumes":null}') == RunConfig()
    assert RunConfig(env=("A=1", "B", "A=2=3")).environment() == {"A": "2=3"}


def test_docker_documents_keep_their_media_type() -> None:
    document = decode(make_manifest().to_json(), "m") | {"mediaType": MEDIA_DOCKER_MANIFEST}
    assert Manifest.from_json(encode(document)).media_type == MEDIA_DOCKER_MANIFEST
    listing = decode(make_index().to_json(), "m") | {"mediaType": MEDIA_DOCKER_LIST}
    assert isinstance(parse_manifest(encode(listing), MEDIA_DOCKER_LIST), Index)
    assert isinstance(parse_manifest(encode(document)), Manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schemaVersion": 3}, "schemaVersion"),
        ({"schemaVersion": None}, "schemaVersion: missing"),
        ({"mediaType": MEDIA_INDEX}, "cannot be an image manifest|mediaType"),
        ({"manifests": []}, "manifests"),
        ({"config": None}, "config: missing"),
        ({"layers": [{}]}, r"layers\[0\]"),
        ({"layers": [{"mediaType": "x", "digest": "sha256:1", "size": 1}]}, r"layers\[0\].digest"),
        ({"layers": [{"mediaType": "x", "digest": A, "size": -1}]}, r"layers\[0\].size"),
        ({"layers": [{"mediaType": "x", "digest": A, "size": "1"}]}, r"layers\[0\].size"),
    ],
)
def test_manifest_refuses(change: dict[str, object], message: str) -> None:
    content = encode(decode(make_manifest().to_json(), "m") | change)
    with pytest.raises(InvalidInput, match=message):
        parse_manifest(content)


def test_announced_and_stated_type_must_agree() -> None:
    with pytest.raises(InvalidInput, match="announced"):
        parse_manifest(make_manifest().to_json(), MEDIA_INDEX)


def test_schema_1_is_named() -> None:
    with pytest.raises(Unsupported, match="schema 1"):
        parse_manifest(b'{"schemaVersion":1,"fsLayers":[]}')


def test_config_errors_name_the_field() -> None:
    with pytest.raises(InvalidInput, match=r"config.architecture: missing"):
        ImageConfig.from_json(b'{"os":"linux"}')
    with pytest.raises(InvalidInput, match=r"rootfs.diff_ids\[0\]"):
        ImageConfig.from_json(b'{"os":"linux","architecture":"a","rootfs":{"diff_ids":["x"]}}')


def test_index_selects_the_best_variant() -> None:
    index = make_index()
    assert index.select(Platform.parse("linux/arm/v7")).digest == B
    assert index.select(Platform.parse("linux/arm/v6")).digest == A
    with pytest.raises(NotFound, match="linux/arm/v6"):
        index.select(Platform.parse("linux/amd64"))


def test_layer_compression() -> None:
    assert [layer_compression(MEDIA_LAYER_TAR + end) for end in ("", "+gzip", "+zstd")] == ["", "gzip", "zstd"]
    with pytest.raises(Unsupported):
        layer_compression("application/wasm")
