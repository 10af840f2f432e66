"""`pylayers build`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from pylayers.cli.session import Session
from pylayers.errors import InvalidInput, translate_os_error

if TYPE_CHECKING:
    from pylayers.build.event import BuildResult
    from pylayers.build.request import BuildRequest

STANDARD_INPUT = Path("/dev/stdin")
MODES = ("auto", "plain", "tty", "rawjson", "quiet")  # progress.MODES, which isn't imported for --help


@click.command(no_args_is_help=False)
@click.argument("context", default=".")
@click.option("-t", "--tag", "references", multiple=True, metavar="NAME[:TAG]", help="Name of the image. Repeatable.")
@click.option("-f", "--file", "dockerfile", metavar="FILE", help="Dockerfile (default: CONTEXT/Dockerfile; -: stdin).")
@click.option("--build-arg", "arguments", multiple=True, metavar="NAME[=VALUE]", help="Set an ARG; no value: yours.")
@click.option("--target", metavar="STAGE", help="Build this stage.")
@click.option("--no-cache", is_flag=True, help="Perform every step again.")
@click.option("--no-cache-filter", multiple=True, metavar="STAGE[,STAGE]", help="Perform these stages' steps again.")
@click.option("--pull", is_flag=True, help="Look for newer base images.")
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH[,…]", help="Platforms to build for.")
@click.option("-v", "--volume", "volumes", multiple=True, metavar="HOST:PATH[:ro]", help="Mount this in every RUN.")
@click.option("--build-context", "contexts", multiple=True, metavar="NAME=PLACE",
              help="A further context: a directory, docker-image://REF, oci-layout://DIR[:TAG] or a tar.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label the image.")
@click.option("--annotation", "annotations", multiple=True, metavar="[TYPE:]KEY=VALUE", help="Annotate the manifest.")
@click.option("--network", default="default", metavar="MODE", help="Network of RUN: host or none.")
@click.option("--secret", "secrets", multiple=True, metavar="id=ID[,src=FILE|,env=NAME]", help="Offer RUN a secret.")
@click.option("--ssh", multiple=True, metavar="default|ID[=SOCKET|KEY[,KEY]]", help="Offer RUN an ssh agent.")
@click.option("--add-host", "add_hosts", multiple=True, metavar="HOST:IP", help="Add a line to RUN's /etc/hosts.")
@click.option("--shm-size", metavar="BYTES", help="Size of RUN's /dev/shm, such as 64m.")
@click.option("--ulimit", "ulimits", multiple=True, metavar="NAME=SOFT[:HARD]", help="Limit of RUN's processes.")
@click.option("--allow", multiple=True, metavar="ENTITLEMENT", help="Allow RUN security.insecure, device, …")
@click.option("-o", "--output", "outputs", multiple=True, metavar="type=TYPE,dest=PATH",
              help="Where the result goes: local, tar, oci, docker or image (default: the store).")  # fmt: skip
@click.option("--attest", "attestations", multiple=True, metavar="type=TYPE", help="Attach sbom or provenance.")
@click.option("--sbom", metavar="BOOL|ARGS", help="Short for --attest type=sbom.")
@click.option("--provenance", metavar="BOOL|ARGS", help="Short for --attest type=provenance.")
@click.option("--split-layers", metavar="BYTES", help="Cut the layer of a large COPY near this size, such as 512m.")
@click.option("--rewrite-timestamp", is_flag=True, help="Let no file be younger than SOURCE_DATE_EPOCH.")
@click.option("--explain", is_flag=True, help="Tell for each step why it was cached or not.")
@click.option("--check", is_flag=True, help="Check the Dockerfile, build nothing.")
@click.option("--cache-key", type=click.Choice(["tree", "chain"]), default="tree", show_default=True,
              help="Reuse steps after equal trees, or by docker's rule.")  # fmt: skip
@click.option("--progress", type=click.Choice(MODES), default="auto", show_default=True, envvar="PYLAYERS_PROGRESS",
              help="How progress is shown.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but the image's id.")
@click.option("--iidfile", metavar="FILE", help="Write the image's id to a file.")
@click.option("--metadata-file", metavar="FILE", help="Write the result as JSON to a file.")
@click.pass_obj
def build(
    session: Session,
    /,
    context: str,
    dockerfile: str | None,
    progress: str,
    quiet: bool,
    iidfile: str | None,
    metadata_file: str | None,
    check: bool,
    sbom: str | None,
    provenance: str | None,
    **given: Any,
) -> None:
    """Build an image from a Dockerfile.

    CONTEXT is a directory, a Dockerfile (its directory is the context then), or - for a Dockerfile on stdin.
    """
    from pylayers.cli.progress import open_progress

    request = read_request(given)
    mode = "quiet" if quiet else progress
    with ExitStack() as stack:
        if context == "-":
            if dockerfile is not None:
                raise click.UsageError("-f cannot be given with a Dockerfile on stdin")
            import tempfile

            context, dockerfile = stack.enter_context(tempfile.TemporaryDirectory(prefix="pylayers-")), "-"
        request["dockerfile"] = STANDARD_INPUT if dockerfile == "-" else dockerfile
        engine = stack.enter_context(session.open())
        shown = open_progress(mode)
        result: BuildResult | None = None
        try:
            result = engine.build(context, subscriber=shown.take, **request)
        finally:
            shown.close(result)
    if iidfile is not None:
        write_result(iidfile, result.config_digest)
    if metadata_file is not None:
        write_result(metadata_file, describe(result))
    if mode == "quiet":
        click.echo(result.config_digest)


def read_request(given: dict[str, Any]) -> BuildRequest:
    """Return what the options ask of the engine."""
    from pylayers.cli.form import read_pairs

    given["arguments"] = read_arguments(given["arguments"])
    given["contexts"] = read_contexts(given["contexts"])
    given["labels"] = read_pairs(given["labels"])
    for name in ("platforms", "no_cache_filter"):
        given[name] = tuple(part for entry in given[name] for part in entry.split(",") if part)
    return cast("BuildRequest", given)


def read_arguments(given: tuple[str, ...]) -> dict[str, str]:
    """Read --build-arg; a name alone takes the value from this process's environment, and nothing where it has none."""
    found: dict[str, str] = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not name:
            raise InvalidInput(f"invalid --build-arg {entry!r}: the name is empty", hint="give NAME=VALUE")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def read_contexts(given: tuple[str, ...]) -> dict[str, str]:
    """Read --build-context."""
    found: dict[str, str] = {}
    for entry in given:
        name, _, place = entry.partition("=")
        if not name or not place:
            raise InvalidInput(f"invalid --build-context {entry!r}", hint="give NAME=DIRECTORY, or NAME=docker-image://REFERENCE")
        found[name] = place
    return found


def describe(result: BuildResult) -> str:
    """Return the result as BuildKit's metadata file has it, with what only this engine knows."""
    import json

    return json.dumps(
        {
            "containerimage.config.digest": result.config_digest,
            "containerimage.digest": result.image_digest,
            "image.name": ",".join(result.references),
            "pylayers.diff_ids": list(result.diff_ids),
            "pylayers.cache_hits": result.cache_hits,
            "pylayers.steps": [
                {"step": one.step.label, "status": one.status.value, "seconds": round(one.seconds, 6),
                 "size_bytes": one.size_bytes, "diff_id": one.diff_id}
                for one in result.steps
            ],
            "pylayers.seconds": round(result.seconds, 6),
        },
        indent=2,
    )  # fmt: skip


def write_result(path: str, content: str) -> None:
    """Write a result file."""
    try:
        Path(path).write_text(content)
    except OSError as error:
        raise translate_os_error(error, f"write {path}") from error
