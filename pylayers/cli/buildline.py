"""The options of `pylayers build`, and a reader for its plain command lines.

An unchanged rebuild takes less time than importing click does. So a command line of known options and one context is
read here; whatever else it holds (--help, an unknown or abbreviated option, a missing value) is left to click, whose
command is made from the same table, and which therefore gives every error and every help text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

ONE, MANY, FLAG = "one", "many", "flag"
MODES = ("auto", "plain", "tty", "rawjson", "quiet")  # progress.MODES, which isn't imported for --help
VERBS = ("build",)
GLOBALS = {"--root": "root", "--driver": "driver", "--runtime": "runtime"}


class Option:
    """One option: its flags, the keyword that gets its value, and its help."""

    __slots__ = ("choices", "default", "flags", "help", "kind", "metavar", "name", "variable")

    def __init__(
        self,
        flags: tuple[str, ...],
        name: str,
        kind: str,
        help: str,
        *,
        metavar: str | None = None,
        choices: tuple[str, ...] = (),
        default: str | None = None,
        variable: str | None = None,
    ) -> None:
        self.flags = flags
        self.name = name
        self.kind = kind
        self.help = help
        self.metavar = metavar
        self.choices = choices
        self.default = default
        self.variable = variable  # of the environment, where the option isn't given


OPTIONS = (
    Option(("-t", "--tag"), "references", MANY, "Name of the image. Repeatable.", metavar="NAME[:TAG]"),
    Option(
        ("-f", "--file"),
        "dockerfile",
        ONE,
        "Dockerfile (default: CONTEXT/Dockerfile; -: stdin).",
        metavar="FILE",
    ),
    Option(("--build-arg",), "arguments", MANY, "Set an ARG; no value: yours.", metavar="NAME[=VALUE]"),
    Option(("--target",), "target", ONE, "Build this stage.", metavar="STAGE"),
    Option(("--no-cache",), "no_cache", FLAG, "Perform every step again."),
    Option(
        ("--no-cache-filter",),
        "no_cache_filter",
        MANY,
        "Perform these stages' steps again.",
        metavar="STAGE[,STAGE]",
    ),
    Option(("--pull",), "pull", FLAG, "Look for newer base images."),
    Option(("--platform",), "platforms", MANY, "Platforms to build for.", metavar="OS/ARCH[,…]"),
    Option(("-v", "--volume"), "volumes", MANY, "Mount this in every RUN.", metavar="HOST:PATH[:ro]"),
    Option(
        ("--build-context",),
        "contexts",
        MANY,
        "A further context: a directory, docker-image://REF, oci-layout://DIR[:TAG] or a tar.",
        metavar="NAME=PLACE",
    ),
    Option(("--label",), "labels", MANY, "Label the image.", metavar="NAME=VALUE"),
    Option(("--annotation",), "annotations", MANY, "Annotate the manifest.", metavar="[TYPE:]KEY=VALUE"),
    Option(("--network",), "network", ONE, "Network of RUN: host or none.", metavar="MODE", default="default"),
    Option(("--secret",), "secrets", MANY, "Offer RUN a secret.", metavar="id=ID[,src=FILE|,env=NAME]"),
    Option(("--ssh",), "ssh", MANY, "Offer RUN an ssh agent.", metavar="default|ID[=SOCKET|KEY[,KEY]]"),
    Option(("--add-host",), "add_hosts", MANY, "Add a line to RUN's /etc/hosts.", metavar="HOST:IP"),
    Option(("--shm-size",), "shm_size", ONE, "Size of RUN's /dev/shm, such as 64m.", metavar="BYTES"),
    Option(("--ulimit",), "ulimits", MANY, "Limit of RUN's processes.", metavar="NAME=SOFT[:HARD]"),
    Option(("--allow",), "allow", MANY, "Allow RUN security.insecure, device, …", metavar="ENTITLEMENT"),
    Option(
        ("-o", "--output"),
        "outputs",
        MANY,
        "Where the result goes: local, tar, oci, docker or image (default: the store).",
        metavar="type=TYPE,dest=PATH",
    ),
    Option(("--attest",), "attestations", MANY, "Attach sbom or provenance.", metavar="type=TYPE"),
    Option(("--sbom",), "sbom", ONE, "Short for --attest type=sbom.", metavar="BOOL|ARGS"),
    Option(("--provenance",), "provenance", ONE, "Short for --attest type=provenance.", metavar="BOOL|ARGS"),
    Option(
        ("--split-layers",),
        "split_layers",
        ONE,
        "Cut the layer of a large COPY near this size, such as 512m.",
        metavar="BYTES",
    ),
    Option(("--rewrite-timestamp",), "rewrite_timestamp", FLAG, "Let no file be younger than SOURCE_DATE_EPOCH."),
    Option(("--explain",), "explain", FLAG, "Tell for each step why it was cached or not."),
    Option(("--check",), "check", FLAG, "Check the Dockerfile, build nothing."),
    Option(
        ("--cache-key",),
        "cache_key",
        ONE,
        "Reuse steps after equal trees, or by docker's rule.",
        choices=("tree", "chain"),
        default="tree",
    ),
    Option(
        ("--progress",),
        "progress",
        ONE,
        "How progress is shown.",
        choices=MODES,
        default="auto",
        variable="PYLAYERS_PROGRESS",
    ),
    Option(("-q", "--quiet"), "quiet", FLAG, "Show nothing but the image's id."),
    Option(("--iidfile",), "iidfile", ONE, "Write the image's id to a file.", metavar="FILE"),
    Option(("--metadata-file",), "metadata_file", ONE, "Write the result as JSON to a file.", metavar="FILE"),
)


def read_line(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]] | None:
    """Return the global options and build's keywords of a plain `[GLOBALS] build …` line; None for any other line."""
    given: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if word in VERBS:
            break
        name, equals, value = word.partition("=")
        if name not in GLOBALS:
            return None
        found = value if equals else next(words, None)
        if found is None:
            return None
        given[GLOBALS[name]] = found
    else:
        return None
    values = read_options(list(words))
    return None if values is None else (given, values)


def read_options(words: list[str]) -> dict[str, Any] | None:
    """Return the keywords that the words after the verb give, None when click has to judge them."""
    known = {flag: option for option in OPTIONS for flag in option.flags}
    values: dict[str, Any] = {option.name: () if option.kind == MANY else option.kind != FLAG and option.default
                              for option in OPTIONS}  # fmt: skip
    values.update({option.name: None for option in OPTIONS if option.kind == ONE and option.default is None})
    contexts: list[str] = []
    seen: set[str] = set()
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "-" or not word.startswith("-"):
            contexts.append(word)
            continue
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        option = known.get(name)
        if option is None or (option.kind == FLAG and equals):
            return None
        seen.add(option.name)
        if option.kind == FLAG:
            values[option.name] = True
            continue
        if not equals:
            if at == len(words):
                return None
            value = words[at]
            at += 1
        if option.choices and value not in option.choices:
            return None
        values[option.name] = (*values[option.name], value) if option.kind == MANY else value
    for option in OPTIONS:
        if option.variable is not None and option.name not in seen and os.environ.get(option.variable):
            value = os.environ[option.variable]
            if value not in option.choices:
                return None
            values[option.name] = value
    if len(contexts) > 1:
        return None
    return {"context": contexts[0] if contexts else ".", **values}
