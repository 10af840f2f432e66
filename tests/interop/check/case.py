"""The cases of `build --check`: short text files, several Dockerfiles in each.

    ==== name [build options]     what follows is the Dockerfile; with --raw its text has Python's escapes, and no
                                  newline at its end
    -- NAME                       another file of the context

The images that FROM may name are those of IMAGES.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).with_name("case")
# Made by both engines before the cases, from these Dockerfiles.
IMAGES = {
    "base": "FROM scratch\nENV PATH=/bin:/usr/bin JAVA_HOME=/java\n",
    "workbase": "FROM base\nWORKDIR /work\n",
    "shellbase": 'FROM base\nSHELL ["/bin/bash", "-c"]\n',
    "cmdbase": "FROM base\nCMD echo x\nENTRYPOINT echo y\nHEALTHCHECK CMD z\n",
    "onbuildbase": "FROM base\nONBUILD LABEL a=$A\nONBUILD ENV B=1\n",
}


@dataclass(frozen=True)
class Case:
    """One Dockerfile, and what else its context holds."""

    topic: str
    name: str
    options: tuple[str, ...]
    files: dict[str, bytes]

    @property
    def key(self) -> str:
        """Return the name among all cases."""
        return f"{self.topic}/{self.name}"

    @property
    def fingerprint(self) -> str:
        """Return a digest of what is asked."""
        asked = [self.options, sorted((name, text.hex()) for name, text in self.files.items()), IMAGES]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    def write(self, directory: Path) -> None:
        """Write the context."""
        directory.mkdir(parents=True)
        for name, text in self.files.items():
            (directory / name).write_bytes(text)


def read_cases() -> list[Case]:
    """Read every case. Raises ValueError for a name given twice."""
    found = [case for path in sorted(DIRECTORY.glob("*.case")) for case in read_topic(path)]
    keys = [case.key for case in found]
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    if doubled:
        raise ValueError(f"cases with the same name: {', '.join(doubled)}")
    return found


def read_topic(path: Path) -> list[Case]:
    """Read one file of cases."""
    _, *parts = ("\n" + path.read_text()).split("\n==== ")
    return [read_case(path.stem, part) for part in parts]


def read_case(topic: str, text: str) -> Case:
    """Read one case."""
    dockerfile, *others = text.rstrip("\n").split("\n-- ")
    head, _, body = dockerfile.partition("\n")
    name, *options = shlex.split(head)
    if "--raw" in options:
        # A byte that is to be no UTF-8 is written \\xNN, a character \\uNNNN.
        body = re.sub(r"\\x([89a-f][0-9a-f])", r"\\udc\1", body)
        content = body.encode().decode("unicode_escape").encode("utf-8", "surrogateescape")
    else:
        content = body.encode() + b"\n"
    files = {"Dockerfile": content}
    for other in others:
        file, _, held = other.partition("\n")
        files[file] = held.encode() + b"\n"
    return Case(topic, name, tuple(option for option in options if option != "--raw"), files)
