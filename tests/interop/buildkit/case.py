"""The cases: short text files, several cases in each, read into records.

A case begins with `==== name`, goes on with `key: value` lines and then has sections that begin with `-- `:

    ==== copy-file: what the case shows
    option: --build-arg A=1          build options, split as a shell does (repeatable)
    again: --build-arg A=2           a second build after the first, with these options; its cached steps are compared
    refused: not found               both engines must refuse, and both messages must have these words (a, b: all)
    check:                           compare what --check finds
    environment: NAME=value          of the build command (repeatable)
    labs: PATHS                      only frontends that must be fetched know it; docker is not asked: pylayers must
                                     make these paths, or refuse it: `labs: refused`
    -- Dockerfile                    also `-- file Dockerfile`
    -- file NAME [mode=0644] [uid=0] [gid=0] [mtime=SECONDS] [xattr.NAME=VALUE] [binary] [size=BYTES]
    -- dir NAME [mode=0755]          -- link NAME -> TARGET      -- hard NAME -> OTHER     -- fifo NAME
    -- archive NAME                  a tar (.gz, .bz2, .xz by name): lines `file|dir|link|hard NAME MODE UID GID TEXT`
    -- git NAME                      bare repository: `file NAME TEXT`, `commit MESSAGE`, `tag NAME`, `branch NAME`
    -- image NAME [options]          the Dockerfile of an image that both build first, with the same context
    -- change                        the sections after this are made between the first and the second build

Names lie in the context; `@NAME` lies beside it, in {aside}, which the HTTP server serves as {http}. Known in
options and Dockerfiles: {context} {aside} {out} {http} {git} {case}.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

DIRECTORY = Path(__file__).with_name("case")
KEYS = ("option", "again", "refused", "check", "environment", "labs")


@dataclass(frozen=True)
class Section:
    """One file, directory, link, archive, repository or image of a case."""

    kind: str
    name: str
    attributes: dict[str, str]
    text: str
    target: str = ""


@dataclass(frozen=True)
class Case:
    """One case. `topic` is its file's name."""

    topic: str
    name: str
    title: str
    options: tuple[str, ...] = ()
    again: tuple[str, ...] | None = None
    refused: tuple[str, ...] | None = None
    check: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    labs: str | None = None
    sections: tuple[Section, ...] = ()
    changes: tuple[Section, ...] = ()

    def images(self) -> list[Section]:
        """Return the images to build first."""
        return [section for section in self.sections if section.kind == "image"]


def read_cases() -> list[Case]:
    """Read every case. Raises ValueError for a malformed one or a name given twice."""
    found = [case for path in sorted(DIRECTORY.glob("*.case")) for case in read_topic(path.stem, path.read_text())]
    names = [case.name for case in found]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise ValueError(f"cases with the same name: {', '.join(sorted(doubled))}")
    return found


def read_topic(topic: str, text: str) -> list[Case]:
    """Read one file of cases."""
    _, *parts = ("\n" + text).split("\n==== ")
    return [read_case(topic, part) for part in parts]


def read_case(topic: str, text: str) -> Case:
    """Read one case."""
    head, *parts = ("\n" + text).split("\n-- ")
    title, *lines = head.strip().splitlines()
    name, _, shown = title.partition(":")
    given: dict[str, list[str]] = {key: [] for key in KEYS}
    for line in lines:
        key, colon, value = line.partition(":")
        if not colon or key not in given:
            raise ValueError(f"case {name}: {line!r} is neither a section nor one of {', '.join(KEYS)}")
        given[key].append(value.strip())
    sections: list[Section] = []
    changes: list[Section] = []
    into = sections
    for part in parts:
        if part.split("\n")[0].strip() == "change":
            into = changes
        else:
            into.append(read_section(name, part))
    return Case(
        topic=topic,
        name=name.strip(),
        title=shown.strip(),
        options=tuple(word for value in given["option"] for word in shlex.split(value)),
        again=tuple(word for value in given["again"] for word in shlex.split(value)) if given["again"] else None,
        refused=tuple(word.strip() for value in given["refused"] for word in value.split(" & ") if word.strip())
        if given["refused"]
        else None,
        check=bool(given["check"]),
        labs=given["labs"][0] if given["labs"] else None,
        environment=dict(value.split("=", 1) for value in given["environment"]),  # type: ignore[misc]
        sections=tuple(sections),
        changes=tuple(changes),
    )


def read_section(case: str, text: str) -> Section:
    """Read one section."""
    head, _, body = text.partition("\n")
    kind, *words = shlex.split(head)
    if kind == "Dockerfile":
        kind, words = "file", ["Dockerfile", *words]
    if kind not in ("file", "dir", "link", "hard", "fifo", "archive", "git", "image"):
        raise ValueError(f"case {case}: unknown section {head!r}")
    name, *words = words
    target = ""
    if words and words[0] == "->":
        target, words = words[1], words[2:]
    attributes = {key: value for key, _, value in (word.partition("=") for word in words)}
    content = body.rstrip("\n") + "\n" if body.strip() else ""
    return Section(kind, name, attributes, content, target)
