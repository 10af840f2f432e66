"""The stat cache as a build uses it: what is known isn't read, what changed is found, and damage does no harm."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pylayers.build.event import BuildResult, Event, StepFinished, StepStarted
from pylayers.build.source import selector
from pylayers.engine import Engine
from pylayers.errors import Conflict
from tests.e2e.build_case import content, leftovers, members, statuses
from tests.e2e.inotify import Opened

FILES = {"a": b"first", "d/b": b"second", "d/e/c": b"third" * 5000, "empty": b""}
OLD_SECONDS = 0.06  # beyond the slack within which a file counts as racy
BOOT_ID_OFFSET = 56  # see HEADER_STRUCT of store/statcache.py


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "context")


@pytest.fixture(params=["here", pytest.param("ramfs", marks=pytest.mark.root)])
def coarse_tree(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Make the tree here, and on ramfs, which stamps files by the timer tick even on kernels with finer ones."""
    context = tmp_path / "context"
    if request.param == "here":
        yield make_tree(context)
        return
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a ramfs")
    context.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", context], check=True)
    try:
        yield make_tree(context)
    finally:
        subprocess.run(["umount", context], check=True)


def make_tree(context: Path) -> Path:
    """Make a context whose folder `tree` alone is copied, so that the Dockerfile's own reading doesn't count."""
    folder = context / "tree"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    (folder / "link").symlink_to("a")
    (folder.parent / "Dockerfile").write_text("FROM base\nCOPY tree /tree\n")
    time.sleep(OLD_SECONDS)
    return folder


def build(engine: Engine, tree: Path) -> tuple[BuildResult, set[str]]:
    """Build, and tell which files of the tree were opened meanwhile."""
    with Opened(tree) as opened:
        result = engine.build(tree.parent)
    return result, opened.names


def test_an_unchanged_rebuild_opens_no_file(engine: Engine, tree: Path) -> None:
    first, opened = build(engine, tree)
    assert opened >= set(FILES) - {"empty"}, "the watch sees what a first build reads"
    for _ in range(3):
        again, opened = build(engine, tree)
        assert opened == set()
        assert statuses(again) == ["FROM cached", "COPY cached"]
        assert again.image_digest == first.image_digest


def test_another_process_knows_what_this_one_read(engine: Engine, tree: Path) -> None:
    first, _ = build(engine, tree)
    with Engine.open(engine.root, driver=engine.driver_name) as other:
        again, opened = build(other, tree)
    assert (opened, again.image_digest) == (set(), first.image_digest)


def test_every_layer_is_made_from_the_files_again_without_the_cache(engine: Engine, tree: Path) -> None:
    first, _ = build(engine, tree)
    with Opened(tree) as opened:
        again = engine.build(tree.parent, no_cache=True)
    assert opened.names >= set(FILES) - {"empty"}
    assert (statuses(again)[1], again.diff_ids) == ("COPY built", first.diff_ids)


def test_only_the_changed_file_is_hashed_before_the_layer_is_written(engine: Engine, tree: Path) -> None:
    """Both contents are on record, so going back to the first needs its hash alone and writes nothing."""
    build(engine, tree)
    (tree / "a").write_bytes(b"other")
    time.sleep(OLD_SECONDS)
    assert statuses(build(engine, tree)[0])[1] == "COPY built"
    (tree / "a").write_bytes(b"first")
    time.sleep(OLD_SECONDS)
    result, opened = build(engine, tree)
    assert statuses(result)[1] == "COPY cached"
    assert opened == {"a"}
    assert build(engine, tree)[1] == set()


def test_files_that_were_written_to_need_no_second_walk(
    engine: Engine, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.build(tree.parent)

    def refuse(*given: object, **options: object) -> None:
        raise AssertionError("the tree was walked")

    monkeypatch.setattr(selector, "walk_selected", refuse)
    for number, text in enumerate((b"other", b"", b"other again")):
        (tree / "d" / "b").write_bytes(text)
        (tree / "empty").chmod(0o600 + number)
        os.setxattr(tree / "a", "user.number", b"%d" % number)
        time.sleep(OLD_SECONDS)
        result = engine.build(tree.parent)
        assert statuses(result)[-1] == "COPY built"
        layer = members(engine, result)
        assert content(engine, result, "tree/d/b") == text
        assert layer["tree/empty"].mode == 0o600 + number
        assert layer["tree/a"].pax_headers["SCHILY.xattr.user.number"] == f"{number}"
        assert statuses(engine.build(tree.parent))[-1] == "COPY cached"
    (tree / "new").touch()
    with pytest.raises(AssertionError, match="the tree was walked"):
        engine.build(tree.parent)


def test_a_touched_file_is_read_once_more_and_nothing_is_built(engine: Engine, tree: Path) -> None:
    first, _ = build(engine, tree)
    os.utime(tree / "a", (1_700_000_000, 1_700_000_000))
    time.sleep(OLD_SECONDS)
    again, opened = build(engine, tree)
    assert opened == {"a"}
    assert (statuses(again)[1], again.image_digest) == ("COPY cached", first.image_digest)
    assert build(engine, tree)[1] == set()


def change_content(tree: Path) -> None:
    """Write as many other bytes and put the mtime back: only ctime tells."""
    before = (tree / "a").stat()
    (tree / "a").write_bytes(b"FIRST")
    os.utime(tree / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (tree / "a").stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def change_link(tree: Path) -> None:
    (tree / "link").unlink()
    (tree / "link").symlink_to("d")


def change_xattr(tree: Path) -> None:
    try:
        os.setxattr(tree / "a", "user.mark", b"1")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("no user xattrs on this file system")


def replace_by_directory(tree: Path) -> None:
    (tree / "empty").unlink()
    (tree / "empty").mkdir()


def swap(tree: Path) -> None:
    """Exchange two files' names: the same inodes, sizes apart, nothing written."""
    (tree / "a").rename(tree / "x")
    (tree / "d" / "b").rename(tree / "a")
    (tree / "x").rename(tree / "d" / "b")


Look = Callable[[Engine, BuildResult], object]
CHANGES: dict[str, tuple[Callable[[Path], object], Look, object]] = {
    "content": (change_content, lambda e, r: content(e, r, "tree/a"), b"FIRST"),
    "mode": (lambda tree: (tree / "a").chmod(0o4711), lambda e, r: members(e, r)["tree/a"].mode, 0o4711),
    "folder's mode": (lambda tree: (tree / "d").chmod(0o700), lambda e, r: members(e, r)["tree/d"].mode, 0o700),
    "xattr": (change_xattr, lambda e, r: members(e, r)["tree/a"].pax_headers.get("SCHILY.xattr.user.mark"), "1"),
    "link": (change_link, lambda e, r: members(e, r)["tree/link"].linkname, "d"),
    "renamed": (lambda tree: (tree / "a").rename(tree / "z"), lambda e, r: content(e, r, "tree/z"), b"first"),
    "renamed folder": (
        lambda tree: (tree / "d").rename(tree / "y"), lambda e, r: "tree/y/e/c" in members(e, r), True
    ),
    "swapped": (swap, lambda e, r: (content(e, r, "tree/a"), content(e, r, "tree/d/b")), (b"second", b"first")),
    "deleted": (lambda tree: (tree / "a").unlink(), lambda e, r: "tree/a" in members(e, r), False),
    "added": (lambda tree: (tree / "d" / "n").write_bytes(b"new"), lambda e, r: content(e, r, "tree/d/n"), b"new"),
    "added folder": (lambda tree: (tree / "d" / "n").mkdir(), lambda e, r: members(e, r)["tree/d/n"].isdir(), True),
    "a file's kind": (replace_by_directory, lambda e, r: members(e, r)["tree/empty"].type, tarfile.DIRTYPE),
    "hard link": (
        lambda tree: os.link(tree / "a", tree / "d" / "h"), lambda e, r: content(e, r, "tree/d/h"), b"first"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found(engine: Engine, tree: Path, name: str) -> None:
    change, look, expected = CHANGES[name]
    first, _ = build(engine, tree)
    assert statuses(build(engine, tree)[0])[1] == "COPY cached"
    change(tree)
    changed, _ = build(engine, tree)
    assert statuses(changed)[1] == "COPY built"
    assert look(engine, changed) == expected
    assert changed.image_digest != first.image_digest
    again, _ = build(engine, tree)
    assert (statuses(again)[1], again.image_digest) == ("COPY cached", changed.image_digest)


def test_edits_within_the_clock_tick_of_a_walk_are_found(engine: Engine, coarse_tree: Path) -> None:
    """Edit in place right before the COPY walks and right after it: equal sizes, and on ramfs equal times."""
    path, both = coarse_tree / "a", (b"one__", b"other")
    for text in both:  # both are on record, so that a COPY takes but a millisecond
        path.write_bytes(text)
        engine.build(coarse_tree.parent)
    on_ramfs = os.path.ismount(coarse_tree.parent)
    same_stamps = 0
    with path.open("r+b", buffering=0) as file:

        def edit(event: Event) -> None:
            if isinstance(event, StepStarted | StepFinished) and event.step.instruction.startswith("COPY"):
                os.pwrite(file.fileno(), both[isinstance(event, StepFinished)], 0)
                stamps.append(os.fstat(file.fileno()).st_ctime_ns)

        for number in range(600):
            if number >= 60 and (same_stamps or not on_ramfs):
                break
            stamps: list[int] = []
            built = engine.build(coarse_tree.parent, subscriber=edit)
            assert content(engine, built, "tree/a") == both[0]
            same_stamps += stamps[0] == stamps[1]
            assert content(engine, engine.build(coarse_tree.parent), "tree/a") == both[1]
    assert engine.system.check() == []
    if on_ramfs and not same_stamps:
        # Since Linux 6.13 a fine stamp that any file system gives moves the coarse clock of all.
        pytest.skip("in 600 rounds no two edits got the same time from this kernel's clock")


def test_edits_with_the_mtime_put_back_are_found(engine: Engine, coarse_tree: Path) -> None:
    path = coarse_tree / "a"
    for number in range(60):
        wanted = b"%05d" % number
        path.write_bytes(wanted)
        os.utime(path, (1_600_000_000, 1_600_000_000))
        assert content(engine, engine.build(coarse_tree.parent), "tree/a") == wanted


def test_edits_during_builds_end_in_the_last_content(engine: Engine, tree: Path) -> None:
    """Whatever mixture a build met, it is refused or its layer holds what its digests say; the next isn't taken in."""
    stop = threading.Event()
    last = [0]

    def edit() -> None:
        with (tree / "a").open("r+b", buffering=0) as file:
            while not stop.is_set():
                last[0] += 1
                os.pwrite(file.fileno(), b"%05d" % (last[0] % 100_000), 0)

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        for _ in range(25):
            try:
                engine.build(tree.parent)
            except Conflict as refused:
                assert "Dockerfile:2: " in str(refused)  # noqa: PT017 - either outcome is right
                assert "changed while" in str(refused)  # noqa: PT017
    finally:
        stop.set()
        editor.join()
    assert last[0] > 25
    assert leftovers(engine.root) == []
    assert content(engine, engine.build(tree.parent), "tree/a") == b"%05d" % (last[0] % 100_000)
    assert engine.system.check() == []


def test_builds_of_one_context_at_once(engine: Engine, tree: Path) -> None:
    engine.build(tree.parent)
    begin = threading.Barrier(4)
    results: list[BuildResult] = []

    def build_often(number: int) -> None:
        with Engine.open(engine.root, driver=engine.driver_name) as own:
            begin.wait()
            for turn in range(6):
                again = bool((number + turn) % 2)
                results.append(own.build(tree.parent, no_cache=again, source_date_epoch_s=1_700_000_000))

    for wanted in (b"first", b"other"):
        (tree / "a").write_bytes(wanted)
        threads = [threading.Thread(target=build_often, args=(number,)) for number in range(4)]
        results.clear()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 24
        assert len({result.image_digest for result in results}) == 1
        assert content(engine, results[0], "tree/a") == wanted
    time.sleep(OLD_SECONDS)
    build(engine, tree)
    assert build(engine, tree)[1] == set()
    assert engine.system.check() == []
    assert leftovers(engine.root) == []


def stat_files(engine: Engine) -> list[Path]:
    return sorted((engine.root / "buildkit" / "stat").glob("*.idx"))


def test_a_truncated_stat_cache_is_made_again(engine: Engine, tree: Path) -> None:
    first, _ = build(engine, tree)
    (file,) = stat_files(engine)
    whole = file.read_bytes()
    for length in {0, 1, 100, 191, 192, 193, len(whole) // 2, len(whole) - 64, len(whole) - 1}:
        file.write_bytes(whole[:length])
        again, opened = build(engine, tree)
        assert opened >= set(FILES) - {"empty"}, length
        assert (statuses(again)[1], again.image_digest) == ("COPY cached", first.image_digest)
        assert build(engine, tree)[1] == set(), "it was written anew"


@pytest.mark.parametrize("boot", ["this", "another"])
def test_a_damaged_stat_cache_never_gives_a_wrong_image(engine: Engine, tree: Path, boot: str) -> None:
    """Flip bits anywhere: after a restart a checksum finds them, before it bounds and keys hold."""
    first, _ = build(engine, tree)
    (file,) = stat_files(engine)
    whole = file.read_bytes()
    if boot == "another":
        found = bytearray(whole)
        found[BOOT_ID_OFFSET : BOOT_ID_OFFSET + 16] = bytes(range(16))
        whole = bytes(found)
    seed = random.Random(boot)
    places = [*range(0, 128), *(seed.randrange(len(whole)) for _ in range(300))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << seed.randrange(8)
        file.write_bytes(damaged)
        again = engine.build(tree.parent)
        assert again.image_digest == first.image_digest, f"byte {place} of {len(whole)}"
    (tree / "a").write_bytes(b"FIRST")
    file.write_bytes(whole)
    assert content(engine, engine.build(tree.parent), "tree/a") == b"FIRST"
    assert engine.system.check() == []


def test_a_stat_cache_of_another_context_or_format_counts_for_nothing(engine: Engine, tree: Path) -> None:
    build(engine, tree)
    (file,) = stat_files(engine)
    whole = file.read_bytes()
    for replacement in (b"", b"x" * 4096, os.urandom(4096), struct.pack("<8sI", b"PYLAYSTC", 99) + whole[12:]):
        file.write_bytes(replacement)
        result, opened = build(engine, tree)
        assert (statuses(result)[1], opened >= {"a", "d/b", "d/e/c"}) == ("COPY cached", True)
    other = tree.parent.with_name("other")
    tree.parent.rename(other)
    file.unlink()
    build(engine, other / "tree")
    (moved,) = stat_files(engine)
    moved.rename(file)  # where the first context's would be
    other.rename(tree.parent)
    (tree / "a").write_bytes(b"FIRST")
    assert content(engine, engine.build(tree.parent), "tree/a") == b"FIRST"


def test_a_lost_stat_cache_costs_only_time(engine: Engine, tree: Path) -> None:
    first, _ = build(engine, tree)
    for file in stat_files(engine):
        file.unlink()
    (engine.root / "buildkit" / "stat").rmdir()
    again, opened = build(engine, tree)
    assert opened >= set(FILES) - {"empty"}
    assert (statuses(again)[1], again.image_digest) == ("COPY cached", first.image_digest)
    assert build(engine, tree)[1] == set()


def test_a_file_that_a_rule_takes_back_is_found_where_nothing_was_before(engine: Engine, tree: Path) -> None:
    """The folder is left out while it is hollow, so that no row of the table tells what comes into it."""
    (tree / "hollow").mkdir()
    (tree / "hollow" / "out").touch()
    (tree.parent / ".dockerignore").write_text("tree/hollow\n!tree/hollow/keep*\n")
    time.sleep(OLD_SECONDS)
    first, _ = build(engine, tree)
    assert not [name for name in members(engine, first) if "hollow" in name]
    (tree / "hollow" / "keep").write_bytes(b"kept")
    assert content(engine, build(engine, tree)[0], "tree/hollow/keep") == b"kept"


def test_what_the_rules_leave_out_may_change(engine: Engine, tree: Path) -> None:
    (tree / "hidden").mkdir()
    (tree.parent / ".dockerignore").write_text("tree/hidden\n")
    time.sleep(OLD_SECONDS)
    first, _ = build(engine, tree)
    (tree / "hidden" / "file").write_bytes(b"secret")
    again, opened = build(engine, tree)
    assert (opened, again.image_digest) == (set(), first.image_digest)
