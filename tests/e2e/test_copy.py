"""COPY as BuildKit does it: what is expected here is what docker 28.5.2 made of the same Dockerfiles and contexts.

Each path is told as `type mode owner time content`: `src` is the context's time, `old` the base's, `new` the build's
own (where docker has the time of the build).
"""

from __future__ import annotations

import io
import os
import re
import socket
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pylayers.diff.merge import merge_layers
from pylayers.engine import Engine
from pylayers.errors import InvalidInput, NotFound, PylayersError
from pylayers.store.entry import FLAG_HARDLINK
from tests.e2e.build_case import BASE, Member, leftovers, make_tar, settle, statuses, write

DIR, LINK = {"type": tarfile.DIRTYPE}, {"type": tarfile.SYMTYPE}
MORE: tuple[Member, ...] = (
    ("dang", None, {**LINK, "linkname": "nowhere/deep"}),
    ("climb", None, {**LINK, "linkname": "../../../etc"}),
    ("tofile", None, {**LINK, "linkname": "etc/passwd"}),
    ("loop", None, {**LINK, "linkname": "loop"}),
    ("data", None, {**DIR, "mode": 0o711, "uid": 5, "gid": 6}),
    ("data/sub", None, {**DIR, "mode": 0o700, "uid": 9, "gid": 9}),
    ("data/f", b"old", {"mode": 0o600, "uid": 3, "gid": 4}),
    ("data/sub/g", b"old g", {"mode": 0o600, "uid": 3, "gid": 4}),
    ("data/link", None, {**LINK, "linkname": "sub"}),
)
TIMES = {0: "new", 1_600_000_000: "src", 1_000_000_000: "old", 77: "old"}
FILES = {"a": "1", "b": "2", "d/x": "3", "d/e/y": "4"}
MODES = {"a": 0o640, "b": 0o755, "d": 0o700, "d/e": 0o2775}
TREE = {"a.md": "m", "b.txt": "t", "sub/a.md": "m", "sub/c.txt": "t", "sub/deep/a.md": "m", "mod/q/z": "z"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One store for all: a key that is too short would be found."""
    root = tmp_path_factory.mktemp("copy") / "root"
    with Engine.open(root, driver="overlay2" if os.geteuid() == 0 else "vfs") as opened:
        opened.images.import_(io.BytesIO(make_tar(BASE + MORE)), "base")
        yield opened


@pytest.fixture
def context(tmp_path: Path) -> Path:
    directory = tmp_path / "context"
    directory.mkdir()
    return directory


def fill(context: Path, files: Mapping[str, str], body: str, links: Mapping[str, str] | None = None) -> Path:
    """Write a context whose Dockerfile has a body below `FROM base`."""
    text = body if body.startswith(("FROM", "ARG")) else f"FROM base\n{body}"
    write(context, {**files, "Dockerfile": text if text.endswith("\n") else text + "\n"})
    for path in (context, *context.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for name, mode in MODES.items():
        if (context / name).exists():
            (context / name).chmod(mode)
    for name, target in (links or {}).items():
        (context / name).symlink_to(target)
    settle(context)
    return context


def observe(engine: Engine, context: Path, **options: object) -> dict[str, str]:
    """Build and describe what differs from the base."""
    result = engine.build(context, **options)
    before = describe(engine, engine.images.get("base").config.diff_ids)
    after = describe(engine, result.diff_ids)
    assert set(before) <= set(after) | {"scratch"} or not any(name in after for name in before)
    return {name: told for name, told in after.items() if before.get(name) != told}


def describe(engine: Engine, diff_ids: tuple[str, ...]) -> dict[str, str]:
    layers = [engine.store.layers.open(diff_id) for diff_id in diff_ids]
    table = merge_layers(layers)
    found = {}
    for entry in table:
        name = table.path(entry).decode()
        mode, time = f"{stat.S_IMODE(entry.mode):o}", entry.mtime_ns // 10**9
        parts = [mode, f"{entry.uid}:{entry.gid}", TIMES.get(time, str(time))]
        if entry.flags & FLAG_HARDLINK:
            parts = ["hard", table.link(entry).decode()]
        elif stat.S_ISLNK(entry.mode):
            parts = ["link", *parts[1:], table.link(entry).decode()]
        elif stat.S_ISREG(entry.mode):
            tar = layers[entry.layer].open_tar()
            parts = ["file", *parts, os.pread(tar, entry.size_bytes, entry.data_offset).decode()]
            os.close(tar)
        else:
            parts = ["dir" if stat.S_ISDIR(entry.mode) else "fifo", *parts]
        found[name] = " ".join(parts).rstrip()
    found.pop("", None)
    return found


A, B = "file 640 0:0 src 1", "file 755 0:0 src 2"
X, E, Y = "file 644 0:0 src 3", "dir 2775 0:0 src", "file 644 0:0 src 4"
NEW = "dir 755 0:0 new"


@pytest.mark.parametrize(
    ("body", "made"),
    [
        ("COPY a /x", {"x": A}),
        ("COPY a /x/", {"x": NEW, "x/a": A}),
        ("COPY a x/y/z", {"x": NEW, "x/y": NEW, "x/y/z": A}),
        ("COPY d /x", {"x": "dir 755 0:0 src", "x/x": X, "x/e": E, "x/e/y": Y}),
        ("COPY d /opt", {"opt": "dir 750 7:8 src", "opt/x": X, "opt/e": E, "opt/e/y": Y}),
        ("COPY a /opt", {"opt/a": A}),
        ("COPY a /etc/passwd", {"etc/passwd": A}),
        ("COPY a b /x", {"x": B}),  # one after another: the second replaces the first
        ("COPY a b /x/", {"x": NEW, "x/a": A, "x/b": B}),
        ("COPY a b /etc/passwd", {"etc/passwd": B}),
        ("COPY a d /x/", {"x": "dir 755 0:0 src", "x/a": A, "x/x": X, "x/e": E, "x/e/y": Y}),
        ("COPY d/x d/e /q/", {"q": "dir 755 0:0 src", "q/x": X, "q/y": Y}),
        ("COPY d /q\nCOPY a /q", {"q": "dir 755 0:0 src", "q/a": A, "q/x": X, "q/e": E, "q/e/y": Y}),
        ("COPY ../../a /x", {"x": A}),
        ("COPY a /x/..", {"a": A}),
        ("WORKDIR /data\nCOPY a f", {"data/f": A}),
        ("WORKDIR /data\nCOPY a sub", {"data/sub/a": A}),
        # symlinks of the destination
        ("COPY a /lib/a", {"usr/lib/a": A}),
        ("COPY d/e /lib", {"usr/lib": "dir 755 0:0 src", "usr/lib/y": Y}),
        ("COPY a /dang", {"nowhere": NEW, "nowhere/deep": A}),
        ("COPY a /dang/", {"nowhere": NEW, "nowhere/deep": NEW, "nowhere/deep/a": A}),
        ("COPY d/e /dang", {"nowhere": NEW, "nowhere/deep": "dir 755 0:0 src", "nowhere/deep/y": Y}),
        ("COPY a /climb/q", {"etc/q": A}),
        ("COPY a /tofile", {"etc/passwd": A}),
        ("COPY a /data/link/q", {"data/sub/q": A}),
        ("COPY --link a /lib/a", {"usr/lib/a": A}),
        # what wildcards match, or don't
        ("COPY noth* /x/", {}),
        ("COPY a noth* /x/", {"x": NEW, "x/a": A}),
        ("COPY d/nope* /x/", {}),  # docker refuses this one unless another COPY sends d
        ("COPY [ab] /x", {"x": B}),
        ("COPY ** /x/", {"x": "dir 755 0:0 src", "x/a": A, "x/b": B, "x/x": X, "x/e": E, "x/e/y": Y}),
        ("COPY **/y /x/", {}),
        ("COPY d/**/y /x/", {"x": NEW, "x/y": Y}),
        ("COPY d/*/ /x/", {"x": "dir 755 0:0 src", "x/y": Y, "x/x": X}),
    ],
)
def test_destinations(shared: Engine, context: Path, body: str, made: dict[str, str]) -> None:
    found = observe(shared, fill(context, FILES, body))
    if "**" in body:
        found.pop("x/Dockerfile", None)
    assert found == made


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("COPY d /etc/passwd", "cannot copy to non-directory: /etc/passwd"),
        ("COPY d /tofile", "cannot copy to non-directory: /etc/passwd"),
        ("COPY a /etc/passwd/", "not a directory"),
        ("COPY a /etc/passwd/x", "not a directory"),
        ("COPY a /loop", "too many symbolic links"),
        ("COPY nothing /x", "'nothing' not found"),
        ("COPY a nothing /x/", "'nothing' not found"),
        ("COPY nodir/* /x/", "not found"),
        ("COPY a/* /x/", "not found"),
        ("COPY [a /x/", "syntax error in pattern"),
        ("COPY --from=base /nope /x", "not found in base"),
        ("COPY --chown=app:staff --from=base /dan* /x/", "not found in base"),  # a symlink that leads nowhere
    ],
)
def test_refusals(shared: Engine, context: Path, body: str, words: str) -> None:
    with pytest.raises((InvalidInput, NotFound), match=re.escape(words)) as raised:
        shared.build(fill(context, FILES, body))
    assert raised.value.span is not None
    assert raised.value.span.line == 2
    assert leftovers(shared.root) == []


@pytest.mark.parametrize(
    ("files", "made"),
    [
        ({"s/f/q": "1"}, "cannot copy to non-directory: /data/f"),
        ({"s/sub": "1"}, "cannot replace to directory /data/sub with file"),
        ({"s/link/q": "1"}, "cannot copy to non-directory: /data/link"),
        ({"s/link": "1"}, {"data": "dir 711 5:6 src", "data/link": "file 644 0:0 src 1"}),
        (
            {"s/sub/g": "1"},  # an inner directory takes the source's metadata, other than the top
            {"data": "dir 711 5:6 src", "data/sub": "dir 755 0:0 src", "data/sub/g": "file 644 0:0 src 1"},
        ),
    ],
)
def test_directories_over_directories(
    shared: Engine, context: Path, files: dict[str, str], made: dict[str, str] | str
) -> None:
    fill(context, files, "COPY s /data")
    if isinstance(made, str):
        with pytest.raises(InvalidInput, match=made):
            shared.build(context)
    else:
        assert observe(shared, context) == made


def test_sources_that_disagree(shared: Engine, context: Path) -> None:
    for body in ("COPY x y /n/", "COPY y x /n/", "COPY f x /n/", "COPY x f /n/"):
        fill(context, {"x/f": "1", "y/f/g": "2", "f": "3"}, body)
        if "y" in body:
            with pytest.raises(InvalidInput, match=r"/n/f"):
                shared.build(context)
        else:
            assert observe(shared, context)["n/f"].endswith("13"[body == "COPY x f /n/"])


def test_symlinks_as_sources(shared: Engine, context: Path) -> None:
    links = {"la": "a", "ld": "d", "lx": "/d/x", "out": "../../etc/passwd", "gone": "nothing", "d/le": "e"}
    fill(context, FILES, "COPY la lx /f/\nCOPY ld /d1\nCOPY ld/x /d2\nCOPY l*/x /no/\nCOPY d/l* /d3/", links)
    assert observe(shared, context) == {
        "f": NEW, "f/la": A, "f/lx": X,
        "d1": "dir 755 0:0 src", "d1/x": X, "d1/e": E, "d1/e/y": Y, "d1/le": "link 0:0 src e",
        "d2": X, "d3": "dir 755 0:0 src", "d3/y": Y,
    }  # fmt: skip
    for source in ("out", "gone", "gon*"):
        write(context, {"Dockerfile": f"FROM base\nCOPY {source} /x/\n"})
        with pytest.raises(NotFound, match=r"not found in the build context"):
            shared.build(context)


def test_sockets_and_fifos(shared: Engine, context: Path) -> None:
    fill(context, {"s/a": "1"}, "COPY s /x\nCOPY s/sock /alone/\nCOPY s/pipe /p")
    os.mkfifo(context / "s/pipe", 0o640)
    with socket.socket(socket.AF_UNIX) as listening:
        directory = os.open(context / "s", os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{directory}/sock")
        os.close(directory)
    (context / "s/sock").chmod(0o755)
    settle(context)
    assert observe(shared, context) == {
        "x": "dir 755 0:0 src", "x/a": "file 644 0:0 src 1", "x/pipe": "fifo 640 0:0 src", "x/sock": "file 755 0:0 src",
        "alone": NEW, "alone/sock": "file 755 0:0 src", "p": "fifo 640 0:0 src",
    }  # fmt: skip
    assert statuses(shared.build(context))[1:] == ["COPY cached"] * 3


def test_hard_links(shared: Engine, context: Path) -> None:
    body = "COPY s /x\nCOPY s/a s/b /y/\nCOPY --exclude=a s /z\nCOPY p q /d/"
    fill(context, {"s/a": "1", "p/a": "2", "q/a": "3"}, body)
    for name in ("s/b", "s/c"):
        os.link(context / "s/a", context / name)
    for name in ("p/b", "p/c"):
        os.link(context / "p/a", context / name)
    settle(context)
    top, one, two = "dir 755 0:0 src", "file 644 0:0 src 1", "file 644 0:0 src 2"
    assert observe(shared, context) == {
        "x": top, "x/a": one, "x/b": "hard x/a", "x/c": "hard x/a", "y": NEW, "y/a": one, "y/b": one,
        "z": top, "z/b": one, "z/c": "hard z/b",
        "d": top, "d/a": "file 644 0:0 src 3", "d/b": two, "d/c": "hard d/b",  # not what took their first name's place
    }  # fmt: skip


def test_owners(shared: Engine, context: Path) -> None:
    expected = {
        "app": "1000:1001", "app:staff": "1000:50", "5": "5:5", "5:staff": "5:50", ":staff": "0:50", "app:5": "1000:5",
        "nobody": "0:0", "app:nogroup": "1000:1001", "app:": "1000:0", "-1": "0:0", "a:b:c": "0:0", "00005": "5:5",
        "4294967296": "0:0",
    }  # fmt: skip
    lines = "".join(f"COPY --chown={given} a /n{at}/a\n" for at, given in enumerate(expected))
    found = observe(shared, fill(context, FILES, lines))
    assert {
        given: [found[f"n{at}"].split()[2], found[f"n{at}/a"].split()[2]] for at, given in enumerate(expected)
    } == {given: [owner, owner] for given, owner in expected.items()}
    shared.build(fill(context, FILES, "FROM scratch\nCOPY --chown=5:6 a /x\nCOPY --chown=app a /y\n"))
    fill(context, FILES, "FROM scratch\nCOPY --chown=app a /y\n")
    with pytest.raises(InvalidInput, match="scratch"):
        shared.build(context)


@pytest.mark.parametrize(
    ("mode", "made"),
    [
        ("700", {"n": "dir 700", "n/x": "dir 700", "n/x/x": "file 700", "n/x/e": "dir 700", "n/x/e/y": "file 700"}),
        ("4711", {"n": "dir 711", "n/x": "dir 711", "n/x/x": "file 4711", "n/x/e": "dir 4711", "n/x/e/y": "file 4711"}),
        ("644", {"n": "dir 644", "n/x": "dir 644", "n/x/x": "file 644", "n/x/e": "dir 644", "n/x/e/y": "file 644"}),
        ("go-rx", {"n": "dir 755", "n/x": "dir 755", "n/x/x": "file 600", "n/x/e": "dir 2720", "n/x/e/y": "file 600"}),
        ("a+X", {"n": "dir 755", "n/x": "dir 755", "n/x/x": "file 644", "n/x/e": "dir 2775", "n/x/e/y": "file 644"}),
    ],
)
def test_modes(shared: Engine, context: Path, mode: str, made: dict[str, str]) -> None:
    found = observe(shared, fill(context, FILES, f"COPY --chmod={mode} d /n/x"))
    assert {name: " ".join(told.split()[:2]) for name, told in found.items()} == made


def test_mode_of_a_source_is_no_part_of_the_key(shared: Engine, context: Path) -> None:
    """What --chmod and the top directory hide doesn't reach the result, so it makes no step anew."""
    fill(context, {"k/a": "key", "k/b": "key"}, "COPY --chmod=755 k /k1\nCOPY k /k2\nCOPY --chmod=u+x k/a /k3\n")
    shared.build(context)
    for name, mode in (("k/a", 0o600), ("k", 0o700)):
        (context / name).chmod(mode)
    settle(context)
    assert statuses(shared.build(context))[1:] == ["COPY cached", "COPY built", "COPY built"]
    (context / "k").chmod(0o711)
    settle(context)
    assert statuses(shared.build(context))[1:] == ["COPY cached"] * 3


HEREDOCS = [
    ("COPY <<EOF /x/f\nhi $HOME ${Q:-none} \\$x\nEOF\n", {"x": NEW, "x/f": "file 644 0:0 new hi  none $x"}),
    (
        "ENV Q=7\nCOPY <<EOF <<'E2' /x/\nq=$Q\nEOF\nq=$Q\nE2\n",
        {"x": NEW, "x/EOF": "file 644 0:0 new q=7", "x/E2": "file 644 0:0 new q=$Q"},
    ),
    ("COPY <<-EOF /x\n\ttab\n\t\ttwo\nEOF\n", {"x": "file 644 0:0 new tab\ntwo"}),
    (
        "COPY --chown=app:staff --chmod=750 <<EOF /new/x\n1\nEOF\n",
        {"new": "dir 750 1000:50 new", "new/x": "file 750 1000:50 new 1"},
    ),
    ("COPY --chmod=u=rwx,go= <<EOF /x\nq\nEOF\n", {"x": "file 700 0:0 new q"}),
    ("COPY <<EOF a /x/\n1\nEOF\n", {"x": NEW, "x/a": A, "x/EOF": "file 644 0:0 new 1"}),
    ("COPY <<a a /x/\nheredoc\na\n", {"x": NEW, "x/a": "file 644 0:0 new heredoc"}),  # after the paths
    ("COPY <<a <<b /x\n1\na\n2\nb\n", {"x": "file 644 0:0 new 2"}),
    ("COPY <<EOF /opt\n1\nEOF\n", {"opt/EOF": "file 644 0:0 new 1"}),
    ("COPY <<EOF /dang\n1\nEOF\n", {"nowhere": NEW, "nowhere/deep": "file 644 0:0 new 1"}),
    ("COPY <<link /data\n1\nlink\n", {"data/link": "file 644 0:0 new 1"}),
    ("COPY <<EOF /x/\nEOF\n", {"x": NEW, "x/EOF": "file 644 0:0 new"}),
    ("COPY --exclude=EOF <<EOF /x/\n1\nEOF\n", {"x": NEW, "x/EOF": "file 644 0:0 new 1"}),
    ("ADD <<EOF /x/y\n1\nEOF\n", {"x": NEW, "x/y": "file 644 0:0 new 1"}),
    ("COPY <<EOF /x\r\n1\r\n2\r\nEOF\r\n", {"x": "file 644 0:0 new 1\r\n2"}),
    ("COPY <<'../q' /x/\n1\n../q\n", {"x": NEW, "x/q": "file 644 0:0 new 1"}),
]


@pytest.mark.parametrize(("body", "made"), HEREDOCS)
def test_heredocs(shared: Engine, context: Path, body: str, made: dict[str, str]) -> None:
    fill(context, FILES, body)
    assert observe(shared, context) == made
    assert statuses(shared.build(context))[-1].endswith("cached")


def test_heredocs_that_are_no_file(shared: Engine, context: Path) -> None:
    fill(context, FILES, "COPY <<d/e /x/\n1\nd/e\n")
    with pytest.raises(InvalidInput, match="file name"):
        shared.build(context)
    fill(context, FILES, "COPY <<sub /data\n1\nsub\n")
    with pytest.raises(InvalidInput, match="cannot replace to directory /data/sub"):
        shared.build(context)


@pytest.mark.parametrize(
    ("flags", "gone"),
    [
        ("--exclude=*.md", {"a.md"}),
        ("--exclude=**/*.md --exclude=mod", {"a.md", "sub/a.md", "sub/deep/a.md", "mod", "mod/q", "mod/q/z"}),
        ("--exclude=sub/*", {"sub/a.md", "sub/c.txt", "sub/deep", "sub/deep/a.md"}),
        ("--exclude=/sub --exclude=s/sub", set()),
        ("--exclude=sub --exclude=!sub/c.txt", {"sub/a.md", "sub/deep", "sub/deep/a.md"}),
        ("--exclude=mod --exclude=!mod/nothing", {"mod", "mod/q", "mod/q/z"}),
    ],
)
@pytest.mark.parametrize("stage", [False, True], ids=["context", "stage"])
def test_exclude(shared: Engine, context: Path, flags: str, gone: set[str], stage: bool) -> None:
    body = f"COPY {flags} s /x/"
    if stage:
        body = f"FROM base AS q\nCOPY s /s\nFROM base\nCOPY --from=q {flags} /s /x/"
    fill(context, {f"s/{name}": text for name, text in TREE.items()}, body)
    every = {"/".join(name.split("/")[:depth]) for name in TREE for depth in range(1, name.count("/") + 2)}
    found = observe(shared, context)
    assert {name.removeprefix("x/") for name in found} - {"x"} == every - gone
    assert statuses(shared.build(context))[-1] == "COPY cached"
    for name in sorted(every & gone, key=len, reverse=True):
        if name in TREE:
            (context / "s" / name).write_text("changed")
    settle(context)
    assert statuses(shared.build(context))[-1] == "COPY cached"  # what isn't copied is no part of the key


def test_exclude_spares_the_source_itself(shared: Engine, context: Path) -> None:
    fill(context, FILES, "COPY --exclude=* a d /x/")
    assert observe(shared, context) == {"x": "dir 755 0:0 src", "x/a": A}
    fill(context, FILES, "COPY --exclude=[ d /x/")
    with pytest.raises(InvalidInput, match="invalid excludepatterns"):
        shared.build(context)


def test_directories_led_through_keep_what_they_are(shared: Engine, context: Path) -> None:
    """As fsutil does it: made with the source's metadata, but an existing one only takes the mode."""
    fill(context, {"s/sub/g": "n", "s/sub/h": "n", "s/own/g": "n"}, "COPY --exclude=** --exclude=!**/g s /data/")
    (context / "s/sub").chmod(0o777)
    (context / "s/own").chmod(0o711)
    settle(context)
    assert observe(shared, context) == {
        "data": "dir 711 5:6 src", "data/sub": "dir 777 9:9 old", "data/sub/g": "file 644 0:0 src n",
        "data/own": "dir 711 0:0 src", "data/own/g": "file 644 0:0 src n",
    }  # fmt: skip


PARENTS = {"x/y/f": "1", "x/y/z/g": "2", "x/f": "3", "q/f": "4", "top": "5"}


@pytest.mark.parametrize(
    ("sources", "made"),
    [
        ("x/y/f", "x x/y x/y/f"),
        ("./x/y/f q/f", "q q/f x x/y x/y/f"),
        ("/x/y", "x x/y x/y/f x/y/z x/y/z/g"),
        ("x/./y/f", "y y/f"),
        ("x/y/./f", "f"),
        ("x/./y", "y y/f y/z y/z/g"),
        ("x/*/f", "x x/y x/y/f"),
        ("**/f", "q q/f x x/f x/y x/y/f"),
        ("x/**/g", "x x/y x/y/z x/y/z/g"),
        ("x/./**/f", "f y y/f"),
        ("*/./y", "Dockerfile top y y/f y/z y/z/g"),
        ("top", "top"),
        ("**/nothing", ""),
        ("--exclude=x/y x", "x x/f"),
        ("--exclude=**/f .", "Dockerfile q top x x/y x/y/z x/y/z/g"),
    ],
)
def test_parents(shared: Engine, context: Path, sources: str, made: str) -> None:
    found = observe(shared, fill(context, PARENTS, f"COPY --parents {sources} /p/"))
    assert " ".join(sorted(name.removeprefix("p/") for name in found if name != "p")) == made
    assert found["p"].startswith("dir 755 0:0")


def test_parents_carry_metadata_and_spare_what_exists(shared: Engine, context: Path) -> None:
    fill(context, {"x/y/f": "1", "sub/g": "2"}, "COPY --parents x/y/f sub/g /data/")
    (context / "x").chmod(0o700)
    (context / "sub").chmod(0o777)
    settle(context)
    assert observe(shared, context) == {
        "data/x": "dir 700 0:0 src", "data/x/y": "dir 755 0:0 src", "data/x/y/f": "file 644 0:0 src 1",
        "data/sub": "dir 777 9:9 old", "data/sub/g": "file 644 0:0 src 2",
    }  # fmt: skip
    for source in ("nothing", "x/nothing", "x/./nothing"):
        write(context, {"Dockerfile": f"FROM base\nCOPY --parents {source} /p/\n"})
        with pytest.raises(NotFound, match="not found"):
            shared.build(context)


def test_parents_of_a_stage(shared: Engine, context: Path) -> None:
    body = "FROM base AS s\nCOPY --chown=3:4 x /s/x\nFROM base\nCOPY --from=s --parents /s/x/y/f /s/./x/y/z /p/\n"
    fill(context, PARENTS, body)
    assert {name: told.split()[2] for name, told in observe(shared, context).items()} == {
        "p": "0:0", "p/s": "3:4", "p/s/x": "3:4", "p/s/x/y": "3:4", "p/s/x/y/f": "3:4",
        "p/x": "3:4", "p/x/y": "3:4", "p/x/y/z": "3:4", "p/x/y/z/g": "3:4",
    }  # fmt: skip


def test_sources_of_a_stage(shared: Engine, context: Path) -> None:
    body = "FROM base AS q\nFROM base\nCOPY --from=q /data /x\nCOPY --from=q /data/link /z\nCOPY --from=q data/f /w/\n"
    body += "COPY --from=q /dat[a]/su* /l*b/ /v/\nCOPY --from=q /nop* /none/\nCOPY --from=q /tofil? /t/\n"
    found = observe(shared, fill(context, FILES, body))
    f, g = "file 600 3:4 old old", "file 600 3:4 old old g"
    assert found.pop("t/tofile").startswith("file 644 0:0 old root")
    assert found == {
        "x": "dir 755 0:0 old", "x/f": f, "x/sub": "dir 700 9:9 old", "x/sub/g": g, "x/link": "link 0:0 old sub",
        "z": "dir 755 0:0 old", "z/g": g, "w": NEW, "w/f": f, "v": "dir 755 0:0 old", "v/g": g, "t": NEW,
    }  # fmt: skip


def test_links_of_a_copied_subtree_stay_links(shared: Engine, context: Path) -> None:
    fill(context, {"d/a": "1", "d/sub/n": "2"}, "FROM base AS q\nCOPY d /d\nFROM base\nCOPY --from=q /d/sub /x\n")
    for name in ("d/sub/b", "d/sub/c"):
        os.link(context / "d/a", context / name)
    settle(context)
    found = observe(shared, context)
    assert (found["x/b"], found["x/c"]) == ("file 644 0:0 src 1", "hard x/b")


def test_attributes_of_directories_join(shared: Engine, context: Path) -> None:
    fill(context, {"s/dd/f": "1", "s2/dd/f": "2"}, "COPY s /data/\nCOPY s2 /data/")
    try:
        os.setxattr(context / "s/dd", "user.a", b"1")
        os.setxattr(context / "s2/dd", "user.b", b"2")
        os.setxattr(context / "s2", "user.top", b"3")
    except OSError:
        pytest.skip("no user attributes here")
    settle(context)
    table = merge_layers([shared.store.layers.open(one) for one in shared.build(context).diff_ids])
    found = {table.path(entry): table.xattrs(entry) for entry in table}
    assert found[b"data/dd"] == {b"user.a": b"1", b"user.b": b"2"}
    assert found[b"data"] == {}


def test_an_excluded_directory_is_not_found(shared: Engine, context: Path) -> None:
    fill(context, {"s/sub/c": "1", ".dockerignore": "s/sub\n!s/sub/nope\n"}, "COPY s/sub /x")
    with pytest.raises(NotFound, match="not found") as raised:
        shared.build(context)
    assert "dockerignore" in (raised.value.hint or "")
    fill(context, {}, "COPY s/* /x/")
    assert observe(shared, context) == {}
    fill(context, {".dockerignore": "**\n!s/sub/nope\n"}, "COPY . /x")
    assert observe(shared, context) == {"x": NEW}


def test_a_named_context_has_its_own_ignore_file(shared: Engine, context: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", {"x": "x", "y": "y", ".dockerignore": "y\n"})
    fill(context, {"y": "mine"}, "COPY --from=other . /made/\nCOPY y /made/mine")
    found = observe(shared, context, contexts={"other": str(tmp_path / "other")})
    assert set(found) == {"made", "made/x", "made/.dockerignore", "made/mine"}
    assert found["made"] == NEW


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ("COPY aplha /x", "did you mean alpha?"),
        ("COPY dir/betta /x", "did you mean dir/beta?"),
        ("COPY Dir/beta /x", "did you mean dir/beta?"),
        ("COPY ignored.log /x", ".dockerignore excludes ignored.log"),
        ("COPY wholly-else /x", "paths are relative to the build context"),
        ("COPY --from=base /etc/paswd /x", "did you mean /etc/passwd?"),
    ],
)
def test_says_what_was_probably_meant(shared: Engine, context: Path, body: str, hint: str) -> None:
    fill(context, {"alpha": "1", "dir/beta": "2", "ignored.log": "3", ".dockerignore": "*.log\n"}, body)
    with pytest.raises(PylayersError) as raised:
        shared.build(context)
    assert raised.value.hint == hint


def test_an_epoch_is_the_time_of_what_a_copy_makes_itself(shared: Engine, context: Path) -> None:
    """As in BuildKit: of the others only --rewrite-timestamp and the client's outputs change the time."""
    fill(context, FILES, "COPY a d /x/\nCOPY d/e /opt\nCOPY <<EOF /h\n1\nEOF\nCOPY --from=base /data/f /n/f\n")
    plain = observe(shared, context)
    dated = observe(shared, context, source_date_epoch_s=1_300_000_000)
    assert {told.split()[3] for name, told in plain.items()} == {"src", "new", "old"}
    assert {told.split()[3] for name, told in dated.items()} == {"src", "1300000000", "old"}
    assert {name for name, told in dated.items() if "1300000000" in told} == {
        name for name, told in plain.items() if "new" in told
    }


def test_many_files_of_one_wildcard(shared: Engine, context: Path) -> None:
    """They are walked together, but copied as if one by one: no hard links, later ones over earlier ones."""
    names = [f"w{number:04}.txt" for number in range(1000)]
    files = dict.fromkeys(names, "w") | {"a/deep.txt": "a", "w0500.d/w0003.txt": "inner", "w0500.d/w0900.txt": "inner"}
    fill(context, files, "COPY w* */*.txt /all/", {"w0100.link": "w0001.txt"})
    os.link(context / "w0001.txt", context / "w0002.zz")
    settle(context)
    found = observe(shared, context)
    one = "file 644 0:0 src w"
    assert found.pop("all") == "dir 755 0:0 src"  # w0500.d's time
    assert found.pop("all/deep.txt") == "file 644 0:0 src a"
    assert found == {f"all/{name}": one for name in [*names, "w0002.zz", "w0100.link"]} | {
        f"all/{name}": "file 644 0:0 src inner" for name in ("w0003.txt", "w0900.txt")
    }
    assert statuses(shared.build(context))[-1] == "COPY cached"
    (context / names[7]).write_text("changed")
    assert observe(shared, context)[f"all/{names[7]}"].endswith("changed")
    (context / names[8]).unlink()
    assert f"all/{names[8]}" not in observe(shared, context)


def test_few_and_many_matches_are_copied_alike(shared: Engine, context: Path) -> None:
    fill(context, {f"m{number}": str(number) for number in range(12)}, "COPY m? m1[01] /one/\nCOPY m* /many/")
    found = observe(shared, context)
    one, many = ({name.partition("/")[2]: told for name, told in found.items() if name.startswith(top)}
                 for top in ("one/", "many/"))  # fmt: skip
    assert one == many
    assert len(one) == 12
    (context / "m11").chmod(0o755)
    settle(context)
    assert statuses(shared.build(context))[1:] == ["COPY built", "COPY built"]


def test_many_matches_onto_one_file_are_copied_one_after_another(shared: Engine, context: Path) -> None:
    fill(context, {f"m{number:02}": str(number) for number in range(12)}, "COPY m* /one\nCOPY m* /data/sub\n")
    found = observe(shared, context)
    assert found["one"] == "file 644 0:0 src 11"
    assert len([name for name in found if name.startswith("data/sub/m")]) == 12
