"""The options of `pylayers build`, and the reading of its plain command lines: see option."""

from __future__ import annotations

from collections.abc import Sequence

from pylayers.cli.option import FLAG, MANY, ONE, Option, read_globals, read_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MODES = ("auto", "plain", "tty", "rawjson", "quiet")  # progress.MODES, which isn't imported for --help
VERBS = ("build",)

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
    found = read_globals(arguments, VERBS)
    if found is None:
        return None
    values = read_options(found[2])
    return None if values is None else (found[0], values)


def read_options(words: Sequence[str]) -> dict[str, Any] | None:
    """Return the keywords that the words after the verb give, None when click has to judge them."""
    found = read_words(OPTIONS, words, interspersed=True)
    if found is None or len(found[1]) > 1:
        return None
    values, contexts = found
    return {"context": contexts[0] if contexts else ".", **values}
