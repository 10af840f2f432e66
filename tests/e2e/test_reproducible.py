"""The same inputs give the same image digest on another day, in another folder, from a copy with other times."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from pathlib import Path

import pytest

from pylayers.build.event import BuildResult
from pylayers.engine import Engine
from tests.e2e.build_case import members, open_with_base, open_with_busybox

EPOCH_S = 1_500_000_000
TEXT = "FROM {base}\nWORKDIR /w/deep\nCOPY --chmod=640 . /opt/c\nCOPY <<EOF /note\ntext\nEOF\nLABEL a=b\n"


def make_context(folder: Path, names: list[str], stamp_s: int, base: str) -> Path:
    """Write equal files in a given order, with given times and under another umask."""
    before = os.umask(0o077 if stamp_s % 2 else 0o022)
    try:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        (folder / "Dockerfile").write_text(TEXT.format(base=base))
    finally:
        os.umask(before)
    for path in (folder, *folder.rglob("*")):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
        os.utime(path, (stamp_s, stamp_s), follow_symlinks=False)
    return folder


def build(root: Path, context: Path, **options: object) -> BuildResult:
    with open_with_base(root) as engine:
        return engine.build(context, **options)  # type: ignore[arg-type]


def test_another_root_another_folder_another_time(tmp_path: Path) -> None:
    names = ["a", "d/b", "d/e/c", "z"]
    one = make_context(tmp_path / "one", names, 1_600_000_000, "base")
    two = make_context(tmp_path / "far" / "two", names[::-1], 1_700_000_001, "base")
    options = {"source_date_epoch_s": EPOCH_S, "rewrite_timestamp": True}
    first = build(tmp_path / "root1", one, **options)
    time.sleep(1.1)
    second = build(tmp_path / "root2", two, **options)
    assert (first.image_digest, first.diff_ids) == (second.image_digest, second.diff_ids)
    plain = build(tmp_path / "root3", one, source_date_epoch_s=EPOCH_S), build(tmp_path / "root4", two)
    assert plain[0].image_digest != plain[1].image_digest, "it is the option that makes them equal"


def test_no_file_of_ours_is_younger_and_older_ones_keep_their_time(tmp_path: Path) -> None:
    context = make_context(tmp_path / "c", ["old", "new"], 1_600_000_000, "base")
    os.utime(context / "old", (1_234_567_890, 1_234_567_890))
    with open_with_base(tmp_path / "root") as engine:
        result = engine.build(context, source_date_epoch_s=EPOCH_S, rewrite_timestamp=True)
        copied = members(engine, result, -2)
        assert copied["opt/c/old"].mtime == 1_234_567_890
        assert copied["opt/c/new"].mtime == EPOCH_S
        assert members(engine, result, 0)["etc/passwd"].mtime == 1_000_000_000, "the base is not ours"
        image = engine.images.get(result.image_digest)
        assert image.config.created.startswith("2017-07-14T02:40:00")
        made = {line.created[:19] for line in image.config.history[-4:]}
        assert made == {"2017-07-14T02:40:00"}
        again = engine.build(context, source_date_epoch_s=EPOCH_S, rewrite_timestamp=True)
        assert again.image_digest == result.image_digest
        other = engine.build(context, source_date_epoch_s=EPOCH_S + 1, rewrite_timestamp=True)
        assert other.image_digest != result.image_digest


def test_local_and_tar_outputs_have_the_epoch_throughout(tmp_path: Path) -> None:
    context = make_context(tmp_path / "c", ["a", "d/b"], 1_600_000_000, "base")
    with open_with_base(tmp_path / "root") as engine:
        outputs = [f"type=local,dest={tmp_path}/out", f"type=tar,dest={tmp_path}/out.tar"]
        engine.build(context, source_date_epoch_s=EPOCH_S, outputs=outputs)
        engine.build(context, outputs=[f"type=local,dest={tmp_path}/plain"])
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert {member.mtime for member in tar.getmembers()} == {EPOCH_S}
    found = list((tmp_path / "out").rglob("*"))
    assert len(found) > 8
    assert {path.lstat().st_mtime_ns for path in found} == {EPOCH_S * 10**9}
    assert (tmp_path / "plain" / "etc" / "passwd").stat().st_mtime == 1_000_000_000


def test_without_an_epoch_there_is_a_warning(tmp_path: Path) -> None:
    context = make_context(tmp_path / "c", ["a"], 1_600_000_000, "base")
    with open_with_base(tmp_path / "root") as engine:
        result = engine.build(context, rewrite_timestamp=True)
        assert any("no SOURCE_DATE_EPOCH" in warning.message for warning in result.warnings)
        assert result.image_digest == engine.build(context).image_digest


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runc") is None, reason="needs root and runc")
def test_commands_on_another_day(tmp_path: Path) -> None:
    digests = set()
    for number in range(2):
        context = tmp_path / f"c{number}"
        context.mkdir()
        text = "FROM busybox\nRUN mkdir /made && echo x > /made/f\nRUN echo y >> /made/f\n"
        (context / "Dockerfile").write_text(text)
        (tmp_path / f"scratch{number}").mkdir()
        with open_with_busybox_of(tmp_path, number) as engine:
            result = engine.build(context, source_date_epoch_s=EPOCH_S, rewrite_timestamp=True)
            digests.add(result.image_digest)
            made = [*members(engine, result, 1).values(), *members(engine, result, 2).values()]
            assert all(member.mtime <= EPOCH_S for member in made)
        time.sleep(1.1)
    assert len(digests) == 1


def open_with_busybox_of(tmp_path: Path, number: int) -> Engine:
    """Open an engine whose base has the same digest each time."""
    engine = open_with_busybox(tmp_path / f"root{number}", tmp_path / f"scratch{number}")
    saved = tmp_path / "base.tar"
    if number == 0:
        layer = engine.store.layers.open(engine.images.get("busybox").config.diff_ids[0])
        shutil.copyfile(layer.tar_path, saved)
    engine.images.import_(saved, "busybox")
    return engine
