"""COPY, ADD and WORKDIR: steps that write their layer straight from their sources."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from pylayers.build.base import open_local_context
from pylayers.build.cache.key import copy_key, copy_partial_key
from pylayers.build.cache.step import CachedStep
from pylayers.build.copy.destination import Ownership, place_destination
from pylayers.build.event import StepStatus
from pylayers.build.session import BuildSession
from pylayers.build.source.local import LocalSource
from pylayers.build.state import StageState
from pylayers.dockerfile import instructions as df
from pylayers.errors import IntegrityError, InvalidInput, NotFound, SourceSpan
from pylayers.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.build.copy.layout import SourceTree
    from pylayers.build.copy.rows import LayerRows
    from pylayers.build.source.pathfilter import PathFilter
    from pylayers.store.layer import Layer

MANY = 8  # so many matches of a wildcard are looked at for files to walk together


def copy_trees(
    session: BuildSession, state: StageState, instruction: df.Copy | df.Add, stage_index: int
) -> tuple[CachedStep, StepStatus]:
    """Perform a COPY or ADD of the stage with that number."""
    trees: list[SourceTree] = []
    try:
        open_trees(session, state, instruction, stage_index, trees)
        return copy_opened(session, state, instruction, trees)
    finally:
        for tree in trees:
            tree.close()


def copy_opened(
    session: BuildSession, state: StageState, instruction: df.Copy | df.Add, trees: list[SourceTree]
) -> tuple[CachedStep, StepStatus]:
    """Perform a COPY of opened trees: from the cache where its key is known, else in one pass over the sources."""
    destination = place_destination(instruction.destination, state.config.working_dir or "/")
    owner = read_ownership(session, instruction)
    options = name_options(session, instruction)
    parent = session.trees.identity(state.diff_ids)
    partial = copy_partial_key(parent, destination.shown, instruction.sources, options)
    no_cache = session.options.no_cache
    remembered = not no_cache and all_remembered(trees, owner)
    earlier = () if no_cache or remembered else session.cache.earlier(partial)
    # Without a step of this shape on record no content can hit: the hashes then come out of the one writing pass.
    if remembered or earlier:
        key = copy_key(partial, [(input_name(tree), tree.digest(owner)) for tree in trees])
        found = session.reuse(key)
        if found is not None:
            return found, StepStatus.CACHED
    from pylayers.build.cache.fact import copy_facts
    from pylayers.build.copy.layout import lay_out

    given = resolve_owner(session, state, instruction, owner)
    merged = session.trees.merged(state.diff_ids)
    made = CachedStep(None, 0)
    if trees:  # none where wildcards matched nothing
        rows = lay_out(merged, trees, destination, given, session.epoch_s, instruction.span)
        made = store_rows(session, state, rows, session.cache.earlier(partial) if remembered else earlier)
        del rows  # as large as the trees' tables, of which the digests below make copies
    # Of what was written, which an edit since the look-up may have made something else than what was looked up.
    inputs = [(input_name(tree), tree.digest(owner)) for tree in trees]
    key = copy_key(partial, inputs)
    facts = copy_facts(session, state, instruction, destination.shown, options, inputs)
    session.cache.record(key, partial, "copy", instruction.original, replace(made, inputs=facts))
    return made, StepStatus.BUILT


def store_rows(
    session: BuildSession, state: StageState, rows: LayerRows, earlier: Sequence[CachedStep] = ()
) -> CachedStep:
    """Write a layer and hand the hashes back to the trees that it came from.

    What it has in common with layers that the same instruction made earlier is taken from them.
    """
    from pylayers.diff.write import write_layer

    split = session.options.split_layers
    if split:
        from pylayers.build.copy.split import read_split_size, store_parts

        return store_parts(session, state, rows, read_split_size(split))
    layers = open_layers(session, earlier)
    known = rows.known_records() if layers else b""
    layer = write_layer(session.store, rows.records, rows.heap, rows.sources, known=known, earlier=layers)
    rows.give_back_hashes()
    return session.made(state, layer.diff_id, layer.size_bytes)


def open_layers(session: BuildSession, steps: Sequence[CachedStep]) -> list[Layer]:
    """Open the layers that some steps made, kept from the collector; those that are gone are left out."""
    layers = []
    for diff_id in [step.diff_id for step in steps if step.diff_id is not None and not step.below]:
        session.hold("layer", diff_id)
        with contextlib.suppress(NotFound, IntegrityError):  # damaged: this build writes its own anyway
            layers.append(session.store.layers.open(diff_id))
    return layers


def all_remembered(trees: list[SourceTree], owner: Ownership) -> bool:
    """Tell whether every tree's digest is known without reading content."""
    return all(tree.remembered_digest(owner) is not None for tree in trees)


def input_name(tree: SourceTree) -> str:
    """Return the name that enters the key: a file's may become part of its destination, a directory's doesn't."""
    return "" if tree.is_directory else tree.name


def name_options(session: BuildSession, instruction: df.Copy | df.Add) -> tuple[str, ...]:
    """Return what of a COPY's options enters its key; --link changes nothing here."""
    options = [instruction.chown or "", instruction.chmod or ""]
    if instruction.exclude or getattr(instruction, "parents", False):
        options += [f"--exclude={pattern}" for pattern in instruction.exclude]
        options += ["--parents"] * getattr(instruction, "parents", False)
    if session.options.split_layers:
        options.append(f"--split-layers={session.options.split_layers}")
    if session.options.source_date_epoch_s is not None:  # the time of directories that have to be made
        options.append(f"SOURCE_DATE_EPOCH={session.options.source_date_epoch_s}")
    return tuple(options)


def read_ownership(session: BuildSession, instruction: df.Copy | df.Add) -> Ownership:
    """Return what a COPY makes of modes and times, and whether it changes owners (then they don't enter its key).

    Files of a context belong to root, those of an image keep their owners.
    """
    name = getattr(instruction, "from_stage", None)
    owned = bool(instruction.chown) or not name or open_local_context(session, name) is not None
    account = 0 if owned else -1
    if not instruction.chmod:
        return Ownership(account, account)
    from pylayers.build.copy.filemode import read_mode

    mode, changes = read_mode(instruction.chmod)
    return Ownership(account, account, mode, changes)


def resolve_owner(
    session: BuildSession, state: StageState, instruction: df.Copy | df.Add, owner: Ownership
) -> Ownership:
    """Return an ownership with the account that --chown names."""
    if not instruction.chown:
        return owner
    from pylayers.build.copy.account import find_account

    uid, gid = find_account(session, state, instruction.chown, instruction.span)
    return replace(owner, uid=uid, gid=gid)


def open_trees(
    session: BuildSession,
    state: StageState,
    instruction: df.Copy | df.Add,
    stage_index: int,
    trees: list[SourceTree],
) -> None:
    """Open every source of a COPY or ADD, in order: paths, then here-documents. They are the caller's to close."""
    name = getattr(instruction, "from_stage", None)
    context = open_local_context(session, name) if name else session.context
    for source in instruction.sources:
        if context is None:
            from pylayers.build.source.image import open_image_source

            trees += open_image_source(session, state, instruction, source, stage_index)
        elif isinstance(instruction, df.Add):
            open_added(session, instruction, source, context, trees)
        else:
            open_paths(instruction, source, context, trees)
    if instruction.heredocs:
        from pylayers.build.source.image import open_heredocs

        trees += open_heredocs(session, instruction)


def open_added(
    session: BuildSession, instruction: df.Add, source: str, context: LocalSource, trees: list[SourceTree]
) -> None:
    """Open one source of an ADD by what it is: a git repository, a URL, an archive to unpack, or plain local files."""
    if "://" in source or "@" in source:
        from pylayers.build.source.added import open_remote

        if open_remote(session, instruction, source, trees):
            return
    if instruction.checksum:
        raise InvalidInput("checksum requires HTTP(S) or Git sources", span=instruction.span)
    first = len(trees)
    open_paths(instruction, source, context, trees)
    if instruction.unpack is False:
        return
    from pylayers.build.source.local import LocalTree

    for number in range(first, len(trees)):
        tree = trees[number]
        if isinstance(tree, LocalTree) and not tree.is_directory:
            from pylayers.build.source.archive import unpack_local

            trees[number] = unpack_local(session, tree, bool(instruction.chown))


def open_paths(
    instruction: df.Copy | df.Add, source: str, context: LocalSource, trees: list[SourceTree]
) -> None:
    """Open what one path or wildcard names in a local context."""
    from pylayers.build.source.local import Hollow

    start, chosen = choose(instruction, source)
    if chosen is not None and chosen.include is not None and not is_wild(source):
        context.find(source)  # a plain path has to be there
    found = context.find(start)
    if len(found) > MANY:
        from pylayers.build.source.filegroup import group_files

        groups = group_files(context, found, instruction.destination)
    else:
        groups = [[path] for path in found]
    for group in groups:
        try:
            trees.append(context.open(group[0], chosen) if len(group) == 1 else context.open_files(group))
        except Hollow:
            if not is_wild(start):
                raise


def is_wild(source: str) -> bool:
    """Tell whether a source may match several paths."""
    return any(character in source for character in "*?[")


def choose(instruction: df.Copy | df.Add, source: str) -> tuple[str, PathFilter | None]:
    """Return the path to open for a source, and what of it --exclude and --parents choose."""
    parents = getattr(instruction, "parents", False)
    if not parents and not instruction.exclude:
        return source, None
    from pylayers.build.source.pathfilter import make_filter, split_pivot

    include = ""
    if parents:
        source, include = split_pivot(source)
    return source, make_filter(include, instruction.exclude)


def make_directory(session: BuildSession, state: StageState, path: str, span: SourceSpan) -> CachedStep:
    """Make a WORKDIR's directory as a layer of its own, owned by the current USER; nothing where it exists."""
    from pylayers.build.copy.account import find_account
    from pylayers.build.copy.layout import Layout

    uid, gid = find_account(session, state, state.config.user, span) if state.config.user else (0, 0)
    layout = Layout(session.trees.merged(state.diff_ids), Ownership(uid, gid), session.epoch_s, span)
    target = layout.resolve(path)
    exists = layout.is_directory(target)
    if exists is False:
        raise InvalidInput(f"WORKDIR {path}: it is not a directory", span=span)
    if exists:
        return CachedStep(None, 0)
    layout.need(target)
    return store_rows(session, state, layout.rows())
