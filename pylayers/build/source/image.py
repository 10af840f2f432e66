"""Sources of a COPY that are not in a local context: paths of an image or stage, and here-documents."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from pylayers.build.base import load_base
from pylayers.build.copy.step import choose, is_wild
from pylayers.build.plan import find_stage_name
from pylayers.build.session import BuildSession
from pylayers.build.source.local import clean_source
from pylayers.build.source.table import TableTree, content_tree, image_tree
from pylayers.build.state import StageState
from pylayers.diff.merge import subtree_end
from pylayers.diff.resolve import find_path
from pylayers.dockerfile import instructions as df
from pylayers.dockerfile.match import filter_names, split_components
from pylayers.errors import InvalidInput, NotFound
from pylayers.store.entry import EntryTable


def open_heredocs(session: BuildSession, instruction: df.Copy | df.Add) -> list[TableTree]:
    """Return the here-documents of an expanded instruction as files of mode 0644."""
    trees = []
    for heredoc in instruction.heredocs:
        path = clean_source(heredoc.name)
        if "/" in path or not path:
            raise InvalidInput(f"<<{heredoc.name}: a here-document's name is a file name", span=instruction.span)
        content = heredoc.text.encode(errors="surrogateescape")
        trees.append(content_tree(path, content, mtime_s=session.epoch_s))
    return trees


def open_image_source(
    session: BuildSession, state: StageState, instruction: df.Copy | df.Add, written: str, stage_index: int
) -> list[TableTree]:
    """Open what one source of a COPY --from=STAGE|IMAGE names, in its merged table."""
    name = getattr(instruction, "from_stage", None) or ""
    stage = find_stage_name(session.stage_names, name, before=stage_index)
    origin = (
        session.stages[stage] if stage is not None else load_base(session, name, state.platform, instruction.span)
    )
    table = session.trees.merged(origin.diff_ids)
    layers = session.trees.layers(origin.diff_ids)
    source, chosen = choose(instruction, written)
    if chosen is not None and chosen.include is not None and not is_wild(written):
        path = os.fsencode(clean_source(written))
        if find_path(table, path).row is None:
            raise missing(table, path, written, name, instruction)
    trees: list[TableTree] = []
    for path in expand_in_table(table, clean_source(source)):
        found = find_path(table, path)
        if found.row is None:
            raise missing(table, path, written, name, instruction)
        last = os.fsdecode(path.rpartition(b"/")[2])
        trees.append(image_tree(table, layers, found.row, subtree_end(table, found.row), last, chosen))
    return trees


def missing(
    table: EntryTable, path: bytes, written: str, name: str, instruction: df.Copy | df.Add
) -> NotFound:
    """Return the error for a path that an image or stage lacks."""
    from pylayers.build.source.suggest import suggest_entry

    hint = suggest_entry(table, os.fsdecode(path))
    return NotFound(f"{written!r} not found in {name}", hint=hint, span=instruction.span)


def expand_in_table(table: EntryTable, pattern: str) -> list[bytes]:
    """Expand wildcards against a merged table, no symlink entered behind the first; a plain path is returned."""
    literal, wild = split_components(pattern)
    base = "/".join(literal).encode(errors="surrogateescape")
    if not wild:
        return [base]
    found = [find_path(table, base).path]
    for number, component in enumerate(wild):
        matched: list[bytes] = []
        for directory in found:
            names = dict(list_directory(table, directory))
            for name in sorted(filter_names(component, map(os.fsdecode, names))):
                encoded = os.fsencode(name)
                if number == len(wild) - 1 or stat.S_ISDIR(names[encoded]):
                    matched.append(directory + b"/" + encoded if directory else encoded)
        found = matched
    return found


def list_directory(table: EntryTable, directory: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the names in a directory of a table and their modes."""
    from pylayers.diff.merge import find_row

    row = find_row(table, directory)
    if row is None:
        return
    end = subtree_end(table, row)
    row += 1
    while row < end:
        entry = table.entry(row)
        yield table.path(entry).rpartition(b"/")[2], entry.mode
        row = subtree_end(table, row)
