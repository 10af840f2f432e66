"""docker-archives: what was saved comes back bit for bit, what others wrote comes in, bad ones leave nothing."""

from __future__ import annotations

import bz2
import errno
import fcntl
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from pylayers._native.sha256 import Sha256, is_fast
from pylayers.engine import Engine
from pylayers.errors import IntegrityError, InvalidInput, NotFound, PylayersError, Unsupported
from pylayers.store.entry import FLAG_HASHED
from pylayers.store.state import EVERY_BYTES
from pylayers.transfer import load as load_module
from pylayers.transfer import verbatim
from tests.e2e.build_case import make_tar, write
from tests.e2e.cli_process import Cli

Members = list[tuple[str, bytes]]
LAYERS = (
    make_tar(),
    make_tar((("etc/.wh.group", b"", {}), ("opt/new", b"n" * 70_000, {"uid": 5}), ("etc/passwd", b"x\n", {}))),
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_config(layers: tuple[bytes, ...] = LAYERS, **more: object) -> bytes:
    diff_ids = [f"sha256:{sha256(layer)}" for layer in layers]
    document = {
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["true"], "Unknown": 1},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, **more,
    }  # fmt: skip
    return json.dumps(document).encode()  # not canonical: its bytes must survive


def pack(members: Members, links: dict[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def modern(config: bytes | None = None, layers: tuple[bytes, ...] = LAYERS, tags: object = ("app:1",)) -> Members:
    """Write members as docker 25 and later does."""
    config = make_config(layers) if config is None else config
    paths = [f"blobs/sha256/{sha256(layer)}" for layer in layers]
    listing = [{"Config": f"blobs/sha256/{sha256(config)}", "RepoTags": tags, "Layers": paths}]
    return [
        *zip(paths, layers, strict=True),
        (f"blobs/sha256/{sha256(config)}", config),
        ("manifest.json", json.dumps(listing).encode()),
    ]


@pytest.fixture
def engine(tmp_path: Path) -> object:
    with Engine.open(tmp_path / "root", driver="vfs") as opened:
        yield opened


def load(engine: Engine, content: bytes, tmp_path: Path) -> list[str]:
    path = tmp_path / "archive"
    path.write_bytes(content)
    return [image.digest for image in engine.images.load(path)]


def check_loaded(engine: Engine, name: str = "app:1") -> None:
    image = engine.images.get(name)
    assert image.config.diff_ids == tuple(f"sha256:{sha256(layer)}" for layer in LAYERS)
    assert image.id == f"sha256:{sha256(make_config())}"
    for diff_id, content in zip(image.config.diff_ids, LAYERS, strict=True):
        assert Path(engine.store.layers.open(diff_id).tar_path).read_bytes() == content
        engine.store.layers.verify(diff_id)


def test_modern(engine: Engine, tmp_path: Path) -> None:
    load(engine, pack(modern()), tmp_path)
    check_loaded(engine)


def test_older_dockers_folders(engine: Engine, tmp_path: Path) -> None:
    """Docker before 25: a folder for each layer; a layer that was there already is a link to the other's."""
    config = make_config((LAYERS[0], LAYERS[1], LAYERS[0]))
    listing = [{"Config": f"{sha256(config)}.json", "RepoTags": ["app:1", "app:2"],
                "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}]  # fmt: skip
    members = [
        ("a/VERSION", b"1.0"), ("a/json", b"{}"), ("a/layer.tar", LAYERS[0]), ("b/layer.tar", LAYERS[1]),
        (f"{sha256(config)}.json", config), ("repositories", b"{}"), ("manifest.json", json.dumps(listing).encode()),
    ]  # fmt: skip
    load(engine, pack(members, {"c/layer.tar": "../a/layer.tar"}), tmp_path)
    assert len(engine.images.get("app:2").config.diff_ids) == 3
    assert engine.images.get("app:1").digest == engine.images.get("app:2").digest


@pytest.mark.parametrize(
    "compress",
    [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress],
    ids=["gzip", "bzip2", "xz", "zstd"],
)
@pytest.mark.parametrize("part", ["whole", "layers"])
def test_compressed(engine: Engine, tmp_path: Path, compress: Callable[[bytes], bytes], part: str) -> None:
    if part == "whole":
        load(engine, compress(pack(modern())), tmp_path)
    else:
        members = [(name, compress(content) if content in LAYERS else content) for name, content in modern()]
        load(engine, pack(members), tmp_path)
    check_loaded(engine)


def test_from_a_stream(engine: Engine) -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(pack(modern()))
    process.stdin.close()
    engine.images.load(process.stdout)
    process.wait()
    check_loaded(engine)


def test_large_layers_are_written_past_the_page_cache(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbatim, "DIRECT_FROM_BYTES", 1)
    monkeypatch.setattr(verbatim, "PIECE_BYTES", 8192)
    load(engine, pack([("pad", b"x"), *modern()]), tmp_path)
    check_loaded(engine)


@pytest.mark.skipif(not is_fast(), reason="this processor has no SHA instructions, so no states are kept")
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_the_states_of_a_large_layers_sha256_are_kept(
    engine: Engine, tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    layer = make_tar((("opt/large", bytes(2 * EVERY_BYTES), {}),))
    config = make_config((layer,))
    members = [(name, compress(content) if content == layer else content) for name, content in modern(config, (layer,))]
    load(engine, pack(members), tmp_path)
    hasher = Sha256(EVERY_BYTES)
    hasher.update(layer)
    assert engine.store.layers.read_states(f"sha256:{sha256(layer)}") == hasher.states != b""


def test_many_layers_at_once_and_one_of_them_twice(engine: Engine, tmp_path: Path) -> None:
    layers = tuple(make_tar(((f"opt/{number}", b"x" * 3000 * number, {}),)) for number in range(9))
    layers = (*layers, layers[2])
    load(engine, pack(modern(layers=layers)), tmp_path)
    image = engine.images.get("app:1")
    assert image.config.diff_ids == tuple(f"sha256:{sha256(layer)}" for layer in layers)
    assert image.size_bytes == sum(map(len, layers))
    for diff_id in image.config.diff_ids:
        engine.store.layers.verify(diff_id)


@pytest.mark.parametrize("wrong", [0, 4, 8])
def test_a_wrong_layer_among_many_drops_those_on_their_way(engine: Engine, tmp_path: Path, wrong: int) -> None:
    layers = tuple(make_tar(((f"opt/{number}", b"x" * 3000 * number, {}),)) for number in range(9))
    content = damage(modern(layers=layers), sha256(layers[wrong]), lambda old: old[:-5000])
    with pytest.raises(IntegrityError, match=sha256(layers[wrong])):
        load(engine, content, tmp_path)
    assert not list((tmp_path / "root" / "tmp").glob("work-*/layer-*"))
    assert engine.images.list() == []


@pytest.mark.parametrize("refused", [errno.EINVAL, errno.EFAULT])
def test_a_disk_that_takes_no_mapped_pages(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """EINVAL means another alignment: the page cache takes the layer. EFAULT: the archive became shorter."""
    write_now = os.pwrite

    def pwrite(descriptor: int, content: memoryview, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(refused, os.strerror(refused))
        return write_now(descriptor, content, offset)

    monkeypatch.setattr(verbatim, "DIRECT_FROM_BYTES", 1)
    monkeypatch.setattr(os, "pwrite", pwrite)
    with tempfile.TemporaryFile(dir=tmp_path) as probe:
        if not verbatim.set_direct(probe.fileno(), True):
            pytest.skip("this file system has no O_DIRECT")
    if refused == errno.EINVAL:
        load(engine, pack(modern()), tmp_path)
        check_loaded(engine)
        return
    with pytest.raises(IntegrityError, match="became shorter"):
        load(engine, pack(modern()), tmp_path)


@pytest.mark.parametrize("left", [0, 512, 4096 + 17])
@pytest.mark.parametrize(
    "moment", ["scan_content", "_read_listing", "_read_manifests", "_load_layers", "index_content", "write_range"]
)
def test_an_archive_that_becomes_shorter(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, left: int
) -> None:
    """Its mapping would end the process by SIGBUS."""
    path = tmp_path / "archive.tar"
    layers = tuple(make_tar(((f"large{number}", os.urandom(1 << 20), {}),)) for number in range(3))
    path.write_bytes(pack(modern(layers=layers)))
    module = verbatim if moment in ("index_content", "write_range") else load_module
    called = getattr(module, moment)

    def shorten(*given: object) -> object:
        os.truncate(path, left)
        return called(*given)

    monkeypatch.setattr(module, moment, shorten)
    with pytest.raises(IntegrityError, match=r"archive(\.tar)? became shorter while it was read"):
        engine.images.load(path)
    assert engine.images.list() == []
    monkeypatch.undo()
    load(engine, pack(modern()), tmp_path)
    check_loaded(engine)


def test_an_archive_that_is_written_to_between_its_hashing_and_its_copying(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was hashed is what the image says, and what is stored would be something else."""
    path = tmp_path / "archive.tar"
    layer = make_tar((("large", b"a" * (1 << 20), {}),))
    path.write_bytes(pack(modern(layers=(layer,))))
    time.sleep(0.06)
    write_now = verbatim.write_range

    def write_later(source_fd: int, source: memoryview, *given: int) -> None:
        time.sleep(0.3)  # the hashing goes on beside this; where it is late, its digest is told as wrong
        with path.open("r+b") as file:
            file.seek(path.read_bytes().index(b"a" * 1000))
            file.write(b"b" * 1000)
        write_now(source_fd, source, *given)

    monkeypatch.setattr(verbatim, "write_range", write_later)
    with pytest.raises(IntegrityError, match="changed while it was read"):
        engine.images.load(path)
    assert engine.images.list() == []
    assert list(engine.store.layers.walk()) == []


def test_layers_that_need_a_second_look(engine: Engine, tmp_path: Path) -> None:
    """Sparse files and global headers are no matter of one pass."""
    corpus = Path(__file__).parent.parent / "corpus" / "good"
    layers = (*LAYERS, *((corpus / name).read_bytes() for name in ("tar_gnu_sparse_1.0.tar", "tar_gnu_sparse_old.tar")))
    load(engine, pack(modern(layers=layers)), tmp_path)
    for diff_id in engine.images.get("app:1").config.diff_ids:
        layer = engine.store.layers.open(diff_id)
        engine.store.layers.verify(diff_id)
        assert all(entry.flags & FLAG_HASHED for entry in layer.table if stat.S_ISREG(entry.mode))


def test_a_name_moves(engine: Engine, tmp_path: Path) -> None:
    load(engine, pack(modern()), tmp_path)
    [image] = engine.images.load(io.BytesIO(pack(modern(make_config(author="x")))))
    assert image.replaced == (("docker.io/library/app:1", f"sha256:{sha256(make_config())}"),)
    assert engine.images.get("app:1").id == image.id


def test_round_trip_keeps_every_digest(engine: Engine, tmp_path: Path) -> None:
    load(engine, pack(modern()), tmp_path)
    engine.images.tag("app:1", "other/name:tag")
    first = tmp_path / "first.tar"
    with first.open("wb") as out:
        engine.images.save(["app:1", "other/name:tag"], out.fileno())
    with Engine.open(tmp_path / "second", driver="vfs") as other:
        [image] = other.images.load(first)
        assert image.digest == engine.images.get("app:1").digest
        assert set(image.names) == {"docker.io/library/app:1", "docker.io/other/name:tag"}
        check_loaded(other)
        with (tmp_path / "again.tar").open("wb") as out:
            other.images.save(["app:1", "other/name:tag"], out.fileno())
    assert (tmp_path / "again.tar").read_bytes() == first.read_bytes()


def damage(members: Members, name: str, change: Callable[[bytes], bytes] | None) -> bytes:
    """Pack members with one of them changed, or left out."""
    kept = [(one, content if not one.endswith(name) or change is None else change(content)) for one, content in members
            if change is not None or not one.endswith(name)]  # fmt: skip
    return pack(kept)


def relisted(**fields: object) -> bytes:
    members = modern()
    listing = json.loads(members[-1][1])
    listing[0].update(fields)
    return pack([*members[:-1], ("manifest.json", json.dumps(listing).encode())])


BAD: list[tuple[str, bytes, type[PylayersError]]] = [
    ("empty", b"", InvalidInput),
    ("no tar", b"hello" * 1000, InvalidInput),
    ("a root file system", LAYERS[0], InvalidInput),
    ("docker before 1.10", pack([("repositories", b"{}")]), Unsupported),
    ("no JSON", pack([("manifest.json", b"{")]), InvalidInput),
    ("no list", pack([("manifest.json", b"{}")]), InvalidInput),
    ("no image", pack([("manifest.json", b"[]")]), InvalidInput),
    ("no config", pack([("manifest.json", b"[{}]")]), InvalidInput),
    ("numbers", relisted(Layers=[1, 2]), InvalidInput),
    ("a huge listing", pack([("manifest.json", b" " * (5 << 20))]), InvalidInput),
    ("config missing", damage(modern(), sha256(make_config()), None), InvalidInput),
    ("config changed", damage(modern(), sha256(make_config()), lambda old: old + b" "), IntegrityError),
    ("layer missing", damage(modern(), sha256(LAYERS[1]), None), InvalidInput),
    ("layer changed", damage(modern(), sha256(LAYERS[1]), lambda old: old.replace(b"nnn", b"nnm")), IntegrityError),
    ("layer no tar", damage(modern(), sha256(LAYERS[1]), lambda old: b"x" * len(old)), InvalidInput),
    ("layer cut", damage(modern(), sha256(LAYERS[1]), lambda old: old[:2000]), IntegrityError),
    ("too few layers", relisted(Layers=[f"blobs/sha256/{sha256(LAYERS[0])}"]), IntegrityError),
    ("outside", relisted(Layers=["../../etc/passwd", "/etc/passwd"]), InvalidInput),
    ("bad name", relisted(RepoTags=["UPPER:1"]), InvalidInput),
    ("link out", pack([(n, c) for n, c in modern() if not n.endswith(sha256(LAYERS[1]))],
                      {f"blobs/sha256/{sha256(LAYERS[1])}": "/etc/passwd"}), InvalidInput),
    ("link in circles", pack([(n, c) for n, c in modern() if not n.endswith(sha256(LAYERS[1]))],
                             {f"blobs/sha256/{sha256(LAYERS[1])}": sha256(LAYERS[1])}), InvalidInput),
    ("cut archive", pack(modern())[:20_000], InvalidInput),
    ("cut gzip", gzip.compress(pack(modern()))[:-100], IntegrityError),
]  # fmt: skip


@pytest.mark.parametrize(("content", "error"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_archives_leave_nothing(
    engine: Engine, tmp_path: Path, content: bytes, error: type[PylayersError]
) -> None:
    with pytest.raises((error, IntegrityError) if content == pack(modern())[:20_000] else error):
        load(engine, content, tmp_path)
    assert engine.images.list() == []
    assert list(engine.store.layers.walk()) == []
    assert list(engine.store.metadata.references.walk()) == []


def test_command_line(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    (tmp_path / "in.tar").write_bytes(pack(modern()))
    assert cli("load", "-i", "in.tar").stdout == "Loaded image: app:1\n"
    cli("save", "-o", "out.tar", "app:1")
    saved = subprocess.run(cli.command("save", "app:1"), capture_output=True, env=cli.environment, check=True).stdout
    assert saved == (tmp_path / "out.tar").read_bytes()
    image_id = cli.lines("images", "--no-trunc", "-q")[0]
    cli("save", "-o", "id.tar", image_id)
    cli("rmi", "app:1")
    assert cli("load", input=(tmp_path / "id.tar").read_bytes()).stdout == f"Loaded image ID: {image_id}\n"
    assert "no such image" in cli("save", "-o", "never.tar", "nobody", code=NotFound.exit_code).stderr
    assert not (tmp_path / "never.tar").exists()
    cli("load", "-i", "missing.tar", code=NotFound.exit_code)
    cli("load", input=b"junk", code=InvalidInput.exit_code)
    cli("save", code=2)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_and_writes(engine: Engine, tmp_path: Path) -> None:
    load(engine, pack(modern()), tmp_path)
    with (tmp_path / "ours.tar").open("wb") as out:
        engine.images.save(["app:1"], out.fileno())
    theirs = f"docker-archive:{tmp_path}/theirs.tar:their/app:2"
    subprocess.run(["skopeo", "copy", "-q", f"docker-archive:{tmp_path}/ours.tar:app:1", theirs], check=True)
    engine.images.remove(["app:1"])
    engine.images.load(tmp_path / "theirs.tar")
    check_loaded(engine, "their/app:2")
    subprocess.run(
        ["skopeo", "copy", "-q", f"oci-archive:{tmp_path}/ours.tar", f"dir:{tmp_path}/layout"], check=True
    )


@pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed")
def test_podman_reads_and_writes(engine: Engine, tmp_path: Path) -> None:
    load(engine, pack(modern()), tmp_path)
    with (tmp_path / "ours.tar").open("wb") as out:
        engine.images.save(["app:1"], out.fileno())
    with tempfile.TemporaryDirectory(prefix="podman-") as place:  # its runroot may have 50 characters
        podman = ["podman", "--root", f"{place}/p", "--runroot", f"{place}/r", "--storage-driver", "vfs"]
        subprocess.run([*podman, "load", "-q", "-i", f"{tmp_path}/ours.tar"], check=True)
        subprocess.run([*podman, "save", "-q", "-o", f"{tmp_path}/theirs.tar", "app:1"], check=True)
        subprocess.run([*podman, "rmi", "--all", "--force"], check=True, capture_output=True)
    engine.images.remove(["app:1"])
    engine.images.load(tmp_path / "theirs.tar")
    assert engine.images.list()[0].config.diff_ids[0] == f"sha256:{sha256(LAYERS[0])}"


def test_a_loaded_image_can_be_built_upon(engine: Engine, tmp_path: Path) -> None:
    load(engine, pack(modern()), tmp_path)
    (tmp_path / "context").mkdir()
    context = write(tmp_path / "context", {"Dockerfile": "FROM app:1\nCOPY file /opt/\n", "file": "f"})
    result = engine.build(context, references=["built"])
    assert len(engine.images.get("built").config.diff_ids) == 3
    assert result.image_digest == engine.images.get("built").digest
