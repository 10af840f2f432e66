"""What FROM and --from name: a stage, an image of the store, a named context, or nothing at all (scratch)."""

from __future__ import annotations

import os
from pathlib import Path

from pylayers.build.event import BuildWarning
from pylayers.build.plan import PlannedStage
from pylayers.build.session import BuildSession
from pylayers.build.source import LocalSource
from pylayers.build.state import StageState
from pylayers.errors import InvalidInput, NotFound, SourceSpan
from pylayers.image.view import load_image, resolve_reference
from pylayers.oci.config import RunConfig
from pylayers.oci.platform import Platform
from pylayers.oci.reference import Reference
from pylayers.record import replace

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
IMAGE_CONTEXT = "docker-image://"
ID_DIGITS = 12  # as many as images shows


def resolve_base(session: BuildSession, planned: PlannedStage) -> StageState:
    """Return the state that a stage starts from."""
    base = planned.base
    if planned.base_stage is not None:
        return replace(session.stages[planned.base_stage], arguments=(), cmd_set=False)
    platform = Platform.parse(base.platform) if base.platform else session.platform
    if base.image == "scratch":
        return StageState(platform, config=RunConfig(env=(DEFAULT_PATH,), working_dir="/"))
    return load_base(session, base.image, platform, base.span)


def load_base(session: BuildSession, name: str, platform: Platform, span: SourceSpan) -> StageState:
    """Return the state of an image, which must be in the store."""
    given = session.options.contexts.get(name, "")
    wanted = given.removeprefix(IMAGE_CONTEXT) if given.startswith(IMAGE_CONTEXT) else name
    digest = resolve_reference(session.store, read_name(session, wanted, span))
    if digest is None:
        # A name wins over an id; a short one is rather a name that is missing.
        by_id = session.store.metadata.images.find(wanted) if len(wanted) >= ID_DIGITS else None
        digest = None if by_id is None else by_id.digest
    if digest is None:
        raise NotFound(
            f"base image {wanted!r} is not in the store",
            hint=f"bring one in with: pylayers import ROOTFS.tar {wanted.lower()}",
            span=span,
        )
    session.hold("blob", digest)
    image = load_image(session.store, digest)
    offered = Platform(image.config.os, image.config.architecture, image.config.variant)
    if platform.rank(offered) is None:
        raise InvalidInput(f"{wanted} is for {offered}, and {platform} is wanted", span=span)
    for diff_id in image.config.diff_ids:
        session.hold("layer", diff_id)
    return StageState(
        platform=offered,
        diff_ids=image.config.diff_ids,
        config=image.config.config,
        history=image.config.history,
        author=image.config.author,
        shell=image.config.config.shell or ("/bin/sh", "-c"),
    )


def read_name(session: BuildSession, wanted: str, span: SourceSpan) -> str:
    """Return a base image's full name, in lower case with a warning; an image id is returned as it is."""
    try:
        reference = Reference.parse_lenient(wanted)
    except InvalidInput as error:
        if session.store.metadata.images.find(wanted) is not None:
            return wanted
        raise InvalidInput(error.message, hint=error.hint, span=span) from None
    for warning in reference.warnings:
        session.emit(BuildWarning(warning, file=span.file, line=span.line))
    return str(reference)


def open_local_context(session: BuildSession, name: str) -> LocalSource | None:
    """Return a named context that is a directory, or None."""
    return session.contexts.get(name)


def open_contexts(given: dict[str, str], cache_of: LocalSource) -> dict[str, LocalSource]:
    """Open the named contexts that are directories. Raises NotFound for one that doesn't exist."""
    found: dict[str, LocalSource] = {}
    for name, value in given.items():
        if value.startswith(IMAGE_CONTEXT):
            continue
        if "://" in value:
            raise InvalidInput(
                f"--build-context {name}={value}: only directories and {IMAGE_CONTEXT}REFERENCE are understood"
            )
        directory = Path(os.path.realpath(value))
        if not directory.is_dir():
            raise NotFound(f"--build-context {name}={value}: no such directory")
        found[name] = LocalSource(directory, cache=cache_of.cache)
    return found
