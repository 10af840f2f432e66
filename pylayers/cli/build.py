"""`pylayers build`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pylayers.cli.session import Session
from pylayers.errors import InvalidInput, translate_os_error

if TYPE_CHECKING:
    from pylayers.build.event import BuildResult

STANDARD_INPUT = Path("/dev/stdin")
MODES = ("auto", "plain", "tty", "rawjson", "quiet")  # progress.MODES, which isn't imported for --help


@click.command(no_args_is_help=False)
@click.argument("context", default=".")
@click.option("-t", "--tag", "references", multiple=True, metavar="NAME[:TAG]", help="Name of the image. Repeatable.")
@click.option("-f", "--file", "dockerfile", metavar="FILE", help="Dockerfile (default: CONTEXT/Dockerfile; -: stdin).")
@click.option("--build-arg", "arguments", multiple=True, metavar="NAME[=VALUE]", help="Set an ARG; no value: yours.")
@click.option("--target", metavar="STAGE", help="Build this stage.")
@click.option("--no-cache", is_flag=True, help="Perform every step again.")
@click.option("--platform", metavar="OS/ARCH", help="Platform to build for.")
@click.option("-v", "--volume", "volumes", multiple=True, metavar="HOST:PATH[:ro]", help="Mount this in every RUN.")
@click.option("--build-context", "contexts", multiple=True, metavar="NAME=DIR", help="A further context.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label the image.")
@click.option("--network", default="default", metavar="MODE", help="Network of RUN: host or none.")
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
    context: str,
    references: tuple[str, ...],
    dockerfile: str | None,
    arguments: tuple[str, ...],
    target: str | None,
    no_cache: bool,
    platform: str | None,
    volumes: tuple[str, ...],
    contexts: tuple[str, ...],
    labels: tuple[str, ...],
    network: str,
    cache_key: str,
    progress: str,
    quiet: bool,
    iidfile: str | None,
    metadata_file: str | None,
) -> None:
    """Build an image from a Dockerfile.

    CONTEXT is a directory, a Dockerfile (its directory is the context then), or - for a Dockerfile on stdin.
    """
    from pylayers.cli.form import read_pairs
    from pylayers.cli.progress import open_progress

    given_arguments, given_contexts = read_arguments(arguments), read_contexts(contexts)
    given_labels = read_pairs(labels)
    with ExitStack() as stack:
        if context == "-":
            if dockerfile is not None:
                raise click.UsageError("-f cannot be given with a Dockerfile on stdin")
            import tempfile

            context, dockerfile = stack.enter_context(tempfile.TemporaryDirectory(prefix="pylayers-")), "-"
        engine = stack.enter_context(session.open())
        shown = open_progress("quiet" if quiet else progress)
        result: BuildResult | None = None
        try:
            result = engine.build(
                context,
                dockerfile=STANDARD_INPUT if dockerfile == "-" else dockerfile,
                references=references,
                arguments=given_arguments,
                target=target,
                no_cache=no_cache,
                platform=platform,
                volumes=volumes,
                contexts=given_contexts,
                labels=given_labels,
                cache_key=cache_key,
                network=network,
                subscriber=shown.take,
            )
        finally:
            shown.close(result)
    if iidfile is not None:
        write_result(iidfile, result.config_digest)
    if metadata_file is not None:
        write_result(metadata_file, describe(result))
    if quiet or progress == "quiet":
        click.echo(result.config_digest)


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
            raise InvalidInput(f"invalid --build-context {entry!r}", hint="give NAME=DIRECTORY")
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
