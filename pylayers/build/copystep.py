"""COPY, ADD and WORKDIR: steps that write their layer straight from their sources."""

from __future__ import annotations

import stat

from pylayers.build.base import load_base, open_local_context
from pylayers.build.cache import CachedStep
from pylayers.build.cachekey import copy_key, copy_partial_key
from pylayers.build.copy import Ancestors, LayerRows, Ownership, lay_out, place_destination
from pylayers.build.event import StepStatus
from pylayers.build.plan import find_stage_name
from pylayers.build.session import BuildSession
from pylayers.build.source import ImageTree, LocalTree, SourceTree, clean_source
from pylayers.build.state import StageState
from pylayers.dockerfile import instructions as df
from pylayers.dockerfile.match import match
from pylayers.errors import InvalidInput, NotFound, SourceSpan, Unsupported
from pylayers.record import replace
from pylayers.store.entry import SOURCE_STRUCT

ACCOUNT_LIMIT_BYTES = 1 << 20


def copy_trees(
    session: BuildSession, state: StageState, instruction: df.Copy | df.Add, stage_index: int
) -> tuple[CachedStep, StepStatus]:
    """Perform a COPY, or an ADD of local files, of the stage with that number."""
    check_supported(instruction)
    trees = open_trees(session, state, instruction, stage_index)
    try:
        return copy_opened(session, state, instruction, trees)
    finally:
        for tree in trees:
            tree.close()


def copy_opened(
    session: BuildSession, state: StageState, instruction: df.Copy | df.Add, trees: list[SourceTree]
) -> tuple[CachedStep, StepStatus]:
    """Perform a COPY of opened trees: from the cache where its key is known, else in one pass over the sources."""
    destination = place_destination(instruction.destination, state.config.working_dir or "/", len(trees))
    shown = destination.path + ("/" if destination.as_directory else "")
    options = (instruction.chown or "", instruction.chmod or "", getattr(instruction, "from_stage", None) or "")
    parent = session.trees.identity(state.diff_ids)
    partial = copy_partial_key(parent, shown, instruction.sources, options)
    no_cache = session.options.no_cache
    # Without a step of this shape on record no content can hit: the hashes then come out of the one writing pass.
    if not no_cache and (all_remembered(trees) or session.cache.expects(partial)):
        key = copy_key(partial, [(input_name(tree), tree.digest()) for tree in trees])
        found = session.reuse(key)
        if found is not None:
            return found, StepStatus.CACHED
    owner = resolve_owner(session, state, instruction)
    merged = session.trees.merged(state.diff_ids)
    rows = lay_out(merged, trees, destination, owner, session.epoch_s, instruction.span)
    made = store_rows(session, state, rows)
    # Of what was written, which an edit since the look-up may have made something else than what was looked up.
    inputs = [(input_name(tree), tree.digest()) for tree in trees]
    key = copy_key(partial, inputs)
    from pylayers.build.fact import copy_facts

    facts = copy_facts(session, state, instruction, shown, options, inputs)
    session.cache.record(key, partial, "copy", instruction.original, replace(made, inputs=facts))
    return made, StepStatus.BUILT


def store_rows(session: BuildSession, state: StageState, rows: LayerRows) -> CachedStep:
    """Write a layer and hand the hashes back to the trees that it came from."""
    from pylayers.diff.write import write_layer

    layer = write_layer(session.store, rows.records, rows.heap, rows.sources)
    rows.give_back_hashes()
    return session.made(state, layer.diff_id, layer.size_bytes)


def all_remembered(trees: list[SourceTree]) -> bool:
    """Tell whether every tree's digest is known without reading content."""
    return all(not isinstance(tree, LocalTree) or tree.remembered_digest() is not None for tree in trees)


def input_name(tree: SourceTree) -> str:
    """Return the name that enters the key: a file's may become part of its destination, a directory's doesn't."""
    return "" if tree.is_directory else tree.name


def check_supported(instruction: df.Copy | df.Add) -> None:
    """Refuse by name what this version doesn't do yet."""
    span = instruction.span
    if instruction.heredocs:
        raise Unsupported(f"{instruction.name} with a heredoc is not supported yet", span=span)
    for flag in ("parents", "exclude", "checksum", "keep_git_dir", "unpack"):
        if getattr(instruction, flag, None):
            raise Unsupported(f"{instruction.name} --{flag.replace('_', '-')} is not supported yet", span=span)
    if isinstance(instruction, df.Add):
        for source in instruction.sources:
            if "://" in source or source.startswith("git@"):
                raise Unsupported(f"ADD of a URL is not supported yet: {source}", span=span)


def open_trees(
    session: BuildSession, state: StageState, instruction: df.Copy | df.Add, stage_index: int
) -> list[SourceTree]:
    """Open every source of a COPY or ADD."""
    name = getattr(instruction, "from_stage", None)
    if name:
        directory = open_local_context(session, name)
        if directory is None:
            return open_image_trees(session, state, instruction, name, stage_index)
    else:
        directory = session.context
    trees: list[SourceTree] = []
    try:
        for pattern in instruction.sources:
            trees.extend(directory.open(path) for path in directory.find(pattern))
    except BaseException:
        for tree in trees:
            tree.close()
        raise
    if isinstance(instruction, df.Add):
        return [unpack_archive(session, tree, instruction.span) for tree in trees]
    return trees


def unpack_archive(session: BuildSession, tree: SourceTree, span: SourceSpan) -> SourceTree:
    """Refuse what ADD would have to unpack; anything else is copied as it is."""
    from pylayers.transfer.archive import detect_archive

    if isinstance(tree, LocalTree) and not tree.is_directory and detect_archive(tree.directory / tree.name):
        raise Unsupported(
            f"ADD of the archive {tree.name} is not supported yet", hint="unpack it first, or use COPY", span=span
        )
    return tree


def open_image_trees(
    session: BuildSession, state: StageState, instruction: df.Copy | df.Add, name: str, stage_index: int
) -> list[SourceTree]:
    """Open the sources of a COPY --from=STAGE|IMAGE, in its merged table."""
    from pylayers.diff.merge import subtree_end
    from pylayers.diff.resolve import find_path

    stage = find_stage_name(session.stage_names, name, before=stage_index)
    source = (
        session.stages[stage] if stage is not None else load_base(session, name, state.platform, instruction.span)
    )
    table = session.trees.merged(source.diff_ids)
    layers = session.trees.layers(source.diff_ids)
    trees: list[SourceTree] = []
    for pattern in instruction.sources:
        for path in expand_in_table(session, source, clean_source(pattern)):
            found = find_path(table, path.encode(errors="surrogateescape"))
            if found.row is None:
                raise NotFound(f"{pattern!r} not found in {name}", span=instruction.span)
            end = subtree_end(table, found.row)
            trees.append(ImageTree(layers, table, found.row, end, path.rsplit("/", 1)[-1]))
    return trees


def expand_in_table(session: BuildSession, source: StageState, pattern: str) -> list[str]:
    """Expand wildcards against a merged table; a plain path is returned as it is."""
    if not any(character in pattern for character in "*?[\\"):
        return [pattern]
    table = session.trees.merged(source.diff_ids)
    depth = pattern.count("/")
    found = []
    for entry in table:
        path = table.path(entry).decode(errors="surrogateescape")
        if path and path.count("/") == depth and match(pattern, path):
            found.append(path)
    if not found:
        raise NotFound(f"{pattern!r} matches nothing")
    return found


def resolve_owner(session: BuildSession, state: StageState, instruction: df.Copy | df.Add) -> Ownership:
    """Return what --chown and --chmod ask for; files of a context belong to root, those of an image keep theirs."""
    uid, gid = (-1, -1) if getattr(instruction, "from_stage", None) else (0, 0)
    name = getattr(instruction, "from_stage", None)
    if name and open_local_context(session, name) is not None:
        uid, gid = 0, 0
    if instruction.chown:
        uid, gid = find_account(session, state, instruction.chown, instruction.span)
    mode = -1
    if instruction.chmod:
        try:
            mode = int(instruction.chmod, 8)
        except ValueError:
            raise InvalidInput(
                f"invalid chmod parameter: {instruction.chmod!r}: expected an octal mode such as 0755",
                span=instruction.span,
            ) from None
        if not 0 <= mode <= 0o7777:
            raise InvalidInput(f"invalid chmod parameter: {instruction.chmod!r} is beyond 07777", span=instruction.span)
    return Ownership(uid, gid, mode)


def find_account(session: BuildSession, state: StageState, text: str, span: SourceSpan | None) -> tuple[int, int]:
    """Resolve USER[:GROUP], by number or through the image's passwd and group."""
    user, colon, group = text.partition(":")
    uid, gid = 0, 0
    if is_number(user):
        uid = gid = int(user)
    elif user:
        fields = find_line(session, state, b"etc/passwd", user, span, "user")
        uid, gid = int(fields[2]), int(fields[3])
    if colon and group:
        number = group if is_number(group) else find_line(session, state, b"etc/group", group, span, "group")[2]
        gid = int(number)
    return uid, gid


def is_number(text: str) -> bool:
    """Tell whether an account is given by number."""
    return text.isascii() and text.isdigit()


def find_line(
    session: BuildSession, state: StageState, path: bytes, name: str, span: SourceSpan | None, what: str
) -> list[str]:
    """Return the fields of a passwd or group line of the image. Raises NotFound."""
    from pylayers.diff.resolve import read_file

    layers = session.trees.layers(state.diff_ids)
    try:
        content = read_file(layers, path, ACCOUNT_LIMIT_BYTES, table=session.trees.merged(state.diff_ids))
    except NotFound:
        content = b""
    for line in content.decode(errors="surrogateescape").splitlines():
        fields = line.split(":")
        numbers = fields[2:3] if what == "group" else fields[2:4]
        if fields[0] == name and numbers and all(number.isdigit() for number in numbers):
            return fields
    raise NotFound(f"unable to find {what} {name}: no matching entry in /{path.decode()} of the image", span=span)


def make_directory(session: BuildSession, state: StageState, path: str, span: SourceSpan) -> CachedStep:
    """Make a WORKDIR's directory as a layer of its own, owned by the current USER; nothing where it exists."""
    from pylayers.diff.resolve import find_path

    table = session.trees.merged(state.diff_ids)
    found = find_path(table, path.strip("/").encode(errors="surrogateescape"))
    if found.entry is not None:
        if not stat.S_ISDIR(found.entry.mode):
            raise InvalidInput(f"WORKDIR {path}: it is not a directory", span=span)
        return CachedStep(None, 0)
    uid, gid = find_account(session, state, state.config.user, span) if state.config.user else (0, 0)
    ancestors = Ancestors(table, Ownership(uid, gid), session.epoch_s, span)
    ancestors.need(found.path)
    made = ancestors.table()
    sources = SOURCE_STRUCT.pack(-1, 0, 0, 0) * len(made)
    return store_rows(session, state, LayerRows(bytearray(made.records), bytearray(made.heap), bytearray(sources), []))
