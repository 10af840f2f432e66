"""Make a case's files: the context, what lies beside it, archives and git repositories. Every time is fixed."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.interop.buildkit.case import Case, Section

FIRST_MTIME_S = 1_500_000_000
COMPRESSIONS = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".xz": "xz"}
GIT_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": "1600000000 +0000",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_COMMITTER_DATE": "1600000000 +0000",
}  # fmt: skip


def case_mtime_ns(case: Case) -> int:
    """Return the time that all files of a case have; no two cases share one, so no cache takes one for the other."""
    return (FIRST_MTIME_S + zlib.crc32(case.name.encode()) % 100_000_000) * 10**9 + 123_456_789


def make_context(case: Case, directory: Path, fill: Callable[[str], str]) -> None:
    """Make a case's files in `directory`: context, aside and out. `fill` replaces {names} in texts."""
    for name in ("context", "aside", "out"):
        (directory / name).mkdir(parents=True)
    make_sections(case, case.sections, directory, fill, case_mtime_ns(case))


def change_context(case: Case, directory: Path, fill: Callable[[str], str]) -> None:
    """Make what a case changes between two builds; a second later, so that a change of the same size is seen."""
    make_sections(case, case.changes, directory, fill, case_mtime_ns(case) + 10**9)


def make_sections(
    case: Case, sections: Iterable[Section], directory: Path, fill: Callable[[str], str], mtime_ns: int
) -> None:
    """Make files, then set their times, so that no later file moves a directory's."""
    made: dict[Path, int] = {}
    for section in sections:
        if section.kind == "image":
            continue
        path = directory / ("aside/" + section.name[1:] if section.name[0] == "@" else "context/" + section.name)
        for parent in reversed(path.parents):
            if parent.is_relative_to(directory) and parent != directory:
                if not parent.exists():
                    parent.mkdir()
                    parent.chmod(0o755)
                made.setdefault(parent, mtime_ns)
        make_one(case, section, path, fill)
        if section.kind != "git":
            given = section.attributes.get("mtime")
            made[path] = int(float(given) * 10**9) if given else mtime_ns
    for path in sorted(made, reverse=True):
        os.utime(path, ns=(made[path], made[path]), follow_symlinks=False)


def make_one(case: Case, section: Section, path: Path, fill: Callable[[str], str]) -> None:
    """Make one file."""
    attributes = section.attributes
    if section.kind == "file":
        path.unlink(missing_ok=True)
        content = fill(section.text).encode() if path.name.endswith("Dockerfile") else section.text.encode()
        if "crlf" in attributes:
            content = content.replace(b"\n", b"\r\n")
        if "size" in attributes:
            content = (content * (int(attributes["size"]) // len(content) + 1))[: int(attributes["size"])]
        path.write_bytes(content)
    elif section.kind == "dir":
        path.mkdir(exist_ok=True)
    elif section.kind == "link":
        path.symlink_to(section.target)
    elif section.kind == "hard":
        os.link(path.parent / section.target, path)
    elif section.kind == "fifo":
        os.mkfifo(path)
    elif section.kind == "archive":
        path.write_bytes(make_archive(section, case_mtime_ns(case) // 10**9))
    elif section.kind == "git":
        make_repository(section, path)
    if section.kind in ("file", "dir", "fifo", "archive"):
        os.chown(path, int(attributes.get("uid", 0)), int(attributes.get("gid", 0)))
        path.chmod(int(attributes.get("mode", "0755" if section.kind == "dir" else "0644"), 8))
    for key, value in attributes.items():
        if key.startswith("xattr."):
            content = bytes.fromhex(value[2:]) if value.startswith("0x") else value.encode()
            os.setxattr(path, key.removeprefix("xattr."), content, follow_symlinks=False)


def make_archive(section: Section, mtime_s: int) -> bytes:
    """Return a tar of the section's lines."""
    stream = io.BytesIO()
    compression = COMPRESSIONS.get(Path(section.attributes.get("as", section.name)).suffix, "")
    with tarfile.open(fileobj=stream, mode=f"w:{compression}", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for line in section.text.splitlines():
            kind, name, mode, uid, gid, *text = line.split(None, 5)
            member = tarfile.TarInfo(name)
            member.mode, member.uid, member.gid, member.mtime = int(mode, 8), int(uid), int(gid), mtime_s
            content = b""
            if kind == "file":
                content = (text[0] if text else "").encode() + b"\n"
                member.size = len(content)
            else:
                member.type = {"dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE,
                               "fifo": tarfile.FIFOTYPE}[kind]  # fmt: skip
                member.linkname = text[0] if text else ""
            tar.addfile(member, io.BytesIO(content))
    made = bytearray(stream.getvalue())
    if compression == "gz":
        made[4:8] = bytes(4)  # the time of compressing: each engine's archive is to be the same
    return bytes(made)


def make_repository(section: Section, path: Path) -> None:
    """Make a bare git repository with the section's commits."""
    work = path.with_name(path.name + ".work")

    def git(*words: str, cwd: Path = work) -> None:
        subprocess.run(["git", *words], cwd=cwd, env=GIT_ENVIRONMENT, check=True, capture_output=True)

    work.mkdir()
    git("init", "--quiet", "--initial-branch=main")
    for line in section.text.splitlines():
        verb, _, rest = line.partition(" ")
        if verb == "file":
            name, _, text = rest.partition(" ")
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_text(text + "\n")
        elif verb == "executable":
            (work / rest).write_text("#!/bin/sh\n")
            (work / rest).chmod(0o755)
        elif verb == "link":
            name, _, text = rest.partition(" ")
            (work / name).symlink_to(text)
        elif verb == "commit":
            git("add", "--all")
            git("commit", "--quiet", "--message", rest)
        elif verb == "tag":
            git("tag", rest)
        elif verb == "branch":
            git("checkout", "--quiet", "-b", rest)
        elif verb == "checkout":
            git("checkout", "--quiet", rest)
        else:
            raise ValueError(f"unknown line in a git section: {line!r}")
    git("clone", "--quiet", "--bare", str(work), str(path), cwd=path.parent)
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=path)
