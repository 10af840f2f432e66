"""What FROM and --from name: a stage, an image of the store, a named context, or nothing at all (scratch)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pylayers.build.event import BuildWarning
from pylayers.build.plan import PlannedStage, parse_triggers
from pylayers.build.session import BuildSession
from pylayers.build.source.local import LocalSource
from pylayers.build.state import StageState
from pylayers.errors import InvalidInput, NotFound, SourceSpan, Unsupported
from pylayers.image.view import Image, load_image, resolve_reference
from pylayers.oci.config import RunConfig
from pylayers.oci.platform import Platform
from pylayers.oci.reference import Reference
from pylayers.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.dockerfile.instructions import From, Instruction
    from pylayers.store import Store

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
IMAGE_CONTEXT = "docker-image://"
ID_DIGITS = 12  # as many as images shows


def resolve_base(session: BuildSession, planned: PlannedStage) -> StageState:
    """Return the state that a stage starts from; a PATH is always set."""
    base = planned.base
    if planned.base_stage is not None:
        parent = session.stages[planned.base_stage]
        # The image's own ENV counts again: an ARG that hid one of its variables does so only in its stage.
        known = parent.config.environment()
        arguments = tuple((name, known.get(name, value)) for name, value in parent.arguments)
        return replace(parent, arguments=arguments, cmd_set=False)
    state = session.bases.get(planned.stage.index)
    if state is None:
        name = planned.stage.name if planned.replaced and planned.stage.name else base.image
        state = load_base(session, name, base_platform(session, base), base.span)
    if "PATH" not in state.config.environment():
        state = replace(state, config=replace(state.config, env=(*state.config.env, DEFAULT_PATH)))
    return state


def base_platform(session: BuildSession, base: From) -> Platform:
    """Return the platform that a FROM asks for."""
    return Platform.parse(base.platform) if base.platform else session.platform


def read_base_triggers(session: BuildSession, index: int, base: From) -> Sequence[Instruction]:
    """Load a stage's base image, keep it for the stage, and return its ONBUILD triggers."""
    state = session.bases[index] = load_base(session, base.image, base_platform(session, base), base.span)
    return parse_triggers(state.config.on_build, base) if state.config.on_build else ()


def load_base(session: BuildSession, name: str, platform: Platform, span: SourceSpan) -> StageState:
    """Return the state of an image, which must be in the store, or of a named context."""
    if name == "scratch":
        return StageState(platform, config=RunConfig(env=(DEFAULT_PATH,), working_dir="/"))
    wanted = name
    if session.options.contexts:
        from pylayers.build.source.context import context_key, load_context

        given = {context_key(key): place for key, place in session.options.contexts.items()}.get(context_key(name))
        if given is not None and not given.startswith(IMAGE_CONTEXT):
            return load_context(session, given, platform, span)
        wanted = name if given is None else given.removeprefix(IMAGE_CONTEXT)
    if session.options.pull:
        raise Unsupported(
            f"--pull: {wanted} cannot be looked for in a registry yet", span=span, hint="build without --pull"
        )
    digest = find_image(session.store, wanted, span, session.stage_names.values(), session.emit, platform)
    session.hold("blob", digest)
    image = load_fitting(session.store, digest, wanted, platform, span)
    session.materials.append((wanted, str(platform), digest))
    for diff_id in image.config.diff_ids:
        session.hold("layer", diff_id)
    return enter_image(image)


def enter_image(image: Image) -> StageState:
    """Return the state of a stage that starts from an image."""
    return StageState(
        platform=Platform(image.config.os, image.config.architecture, image.config.variant),
        diff_ids=image.config.diff_ids,
        config=image.config.config,
        history=image.config.history,
        author=image.config.author,
        shell=image.config.config.shell or ("/bin/sh", "-c"),
        base_count=len(image.config.diff_ids),
    )


def find_image(
    store: Store,
    wanted: str,
    span: SourceSpan,
    stage_names: Iterable[str | None],
    emit: Callable[[BuildWarning], None],
    platform: Platform | None = None,
) -> str:
    """Return the digest of an image in the store, of an index the one for the platform. Raises NotFound."""
    digest = resolve_reference(store, read_name(store, wanted, span, emit), platform)
    if digest is None:
        # A name wins over an id; a short one is rather a name that is missing.
        by_id = store.metadata.images.find(wanted) if len(wanted) >= ID_DIGITS else None
        digest = None if by_id is None else by_id.digest
    if digest is None:
        raise missing_base(wanted, span, stage_names)
    return digest


def load_fitting(store: Store, digest: str, wanted: str, platform: Platform, span: SourceSpan) -> Image:
    """Load an image of the store. Raises InvalidInput for one of another platform."""
    image = load_image(store, digest)
    offered = Platform(image.config.os, image.config.architecture, image.config.variant)
    if platform.rank(offered) is None:
        raise InvalidInput(
            f"{wanted} is for {offered}, and {platform} is wanted", span=span, hint=f"build with --platform {offered}"
        )
    return image


def missing_base(wanted: str, span: SourceSpan, stage_names: Iterable[str | None]) -> NotFound:
    """Return the error for an image that isn't in the store; a stage's name that is nearly the same is told."""
    from pylayers.dockerfile.suggest import suffix_suggestion

    names = [name for name in stage_names if name]
    return NotFound(
        f"base image {wanted!r} is not in the store{suffix_suggestion(wanted, names)}",
        hint=f"bring one in with: pylayers import ROOTFS.tar {wanted.lower()}",
        span=span,
    )


def read_name(store: Store, wanted: str, span: SourceSpan, emit: Callable[[BuildWarning], None]) -> str:
    """Return a base image's full name, in lower case with a warning; an image id is returned as it is."""
    try:
        reference = Reference.parse_lenient(wanted)
    except InvalidInput as error:
        if store.metadata.images.find(wanted) is not None:
            return wanted
        raise InvalidInput(error.message, hint=error.hint, span=span) from None
    for warning in reference.warnings:
        emit(BuildWarning(warning, file=span.file, line=span.line))
    return str(reference)


def open_local_context(session: BuildSession, name: str) -> LocalSource | None:
    """Return a named context that is a directory, or None."""
    if not session.contexts:
        return None
    from pylayers.build.source.context import context_key

    return session.contexts.get(context_key(name))


def open_contexts(given: dict[str, str], cache_of: LocalSource) -> dict[str, LocalSource]:
    """Open the named contexts. Raises NotFound for one that doesn't exist."""
    if not given:
        return {}
    from pylayers.build.source import context as namedcontext

    return namedcontext.open_contexts(given, cache_of)
