"""Images of an engine: import, look at, tag, remove, commit, hand out."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pylayers.errors import Conflict, InvalidInput
from pylayers.image.assemble import AssembledImage, assemble
from pylayers.image.view import (
    Image,
    find_image,
    list_names,
    list_own_names,
    load_image,
    read_children,
    view_image,
)
from pylayers.oci.config import ImageConfig, RunConfig
from pylayers.oci.reference import Reference
from pylayers.record import record as make_record
from pylayers.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    from pylayers.build.state import StageState
    from pylayers.engine import Engine
    from pylayers.oci.platform import Platform
    from pylayers.transfer.load import LoadedImage

Names = list[str]
EPOCH = "1970-01-01T00:00:00Z"
CHANGE_INSTRUCTIONS = (
    "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "SHELL", "STOPSIGNAL", "USER", "VOLUME",
    "WORKDIR",
)  # fmt: skip


@make_record
class HistoryLine:
    """One step of an image's history; `diff_id` is None for a step without a layer."""

    created: str
    created_by: str
    comment: str
    diff_id: str | None
    size_bytes: int


@make_record
class Removal:
    """Say what a removal did: names that went, images and layers that went with them."""

    untagged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()  # manifest digests
    freed_bytes: int = 0


@make_record
class ChunkComparison:
    """Say how many distinct chunks and bytes an image has, and how many of the bytes another image lacks."""

    chunk_count: int
    size_bytes: int
    missing_bytes: int


class ImageActions:
    """What can be done with images; reached as `engine.images`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def import_(
        self, source: Path | IO[bytes], reference: str | None = None, *, changes: Sequence[str] = (), message: str = ""
    ) -> Image:
        """Make an image of one layer from a root file system's tar, plain or compressed.

        changes are Dockerfile instructions (CMD, ENV, …) that set its configuration. Raises NotFound, InvalidInput,
        IntegrityError with the byte offset of what is malformed.
        """
        from pylayers.build.state import StageState, write_history
        from pylayers.transfer.rootfs import import_layer

        store = self._engine.store
        name = None if reference is None else Reference.parse(reference).with_default_tag()
        state = apply_changes(StageState(this_platform()), changes)
        with store.lease("import"):
            layer = import_layer(store, source)
            shown = os.fspath(source) if isinstance(source, os.PathLike) else "-"
            state = replace(state, diff_ids=(layer.diff_id,))
            state = write_history(state, f"import {os.path.basename(shown)}", EPOCH, empty_layer=False)
            if message:
                state = replace(state, history=(replace(state.history[0], comment=message),))
            return self._store(state, name)

    def _store(self, state: StageState, name: Reference | None) -> Image:
        from pylayers.build.state import Trees

        store = self._engine.store
        # Its tree digest is taken by the first build that asks for it. The image's transaction comes next, and flushes.
        Trees(store).record(state.diff_ids, durable=False)
        made = store_state(self._engine, state, None if name is None else str(name))
        return view_image(store, made.digest, made.config, made.manifest, list_own_names(store, made.digest))

    def get(self, name: str) -> Image:
        """Return an image by name, digest or id prefix. Raises NotFound."""
        return find_image(self._engine.store, name)

    def list(self) -> Sequence[Image]:
        """Return every image, newest first."""
        store = self._engine.store
        names = list_names(store)
        return [
            load_image(store, record.digest, names.get(record.digest, ())) for record in store.metadata.images.walk()
        ]

    def history(self, name: str) -> Sequence[HistoryLine]:
        """Return an image's steps, newest first."""
        image = self.get(name)
        sizes = {layer.digest: layer.size_bytes for layer in image.manifest.layers}
        diff_ids = iter(image.config.diff_ids)
        lines = []
        for step in image.config.history:
            diff_id = None if step.empty_layer else next(diff_ids)
            size_bytes = 0 if diff_id is None else sizes.get(diff_id, 0)
            lines.append(HistoryLine(step.created, step.created_by, step.comment, diff_id, size_bytes))
        return lines[::-1]

    def tag(self, name: str, reference: str) -> None:
        """Give an image, or an index where the name is one's, another name."""
        image = self.get(name)
        references = self._engine.store.metadata.references
        full = self._named(name, image)
        target = references.get(full) if full is not None else None
        references.set(str(Reference.parse(reference).with_default_tag()), target or image.digest)

    def remove(self, names: Sequence[str], *, force: bool = False) -> Removal:
        """Remove names, and each image whose last name goes, as docker's rmi does.

        Raises Conflict for an image that a container uses (unless force, and no container runs it), or that is named
        by id while several names stand for it.
        """
        untagged: Names = []
        deleted: Names = []
        for name in names:
            self._remove_one(name, force, untagged, deleted)
        freed_bytes = self._engine.collect() if deleted else 0
        return Removal(tuple(untagged), tuple(deleted), freed_bytes)

    def _remove_one(self, name: str, force: bool, untagged: Names, deleted: Names) -> None:
        references = self._engine.store.metadata.references
        image = self.get(name)
        tag = self._named(name, image)
        if tag is not None and len(image.references) > 1:
            references.delete(tag)
            untagged.append(tag)
            return
        if tag is None and len(image.references) > 1 and not force:
            raise Conflict(
                f"unable to delete {image.id[7:19]} (must be forced): its names are {', '.join(image.references)}",
                hint="remove the names one by one, or use --force",
            )
        users = self._engine.containers.using_image(image.digest)
        if users and (not force or any(user.running for user in users)):
            raise Conflict(
                f"unable to remove {name}: container {users[0].id[:12]} is using it",
                hint=f"remove the container first: pylayers rm {users[0].name}",
            )
        targets = {references.get(reference) for reference in image.references} - {None, image.digest}
        for reference in image.references:
            references.delete(reference)
            untagged.append(reference)
        # With an index go all its images that have no other name and no container.
        siblings = [child.digest for target in targets for child in read_children(self._engine.store, target or "")]
        names = list_names(self._engine.store)
        for digest in dict.fromkeys((image.digest, *siblings)):
            known = self._engine.store.metadata.images.get(digest) is not None
            if digest == image.digest or (
                known and digest not in names and not self._engine.containers.using_image(digest)
            ):
                self._engine.store.metadata.images.delete(digest)
                deleted.append(digest)

    def _named(self, name: str, image: Image) -> str | None:
        try:
            full = str(Reference.parse(name).with_default_tag())
        except InvalidInput:
            return None
        return full if full in image.references else None

    def prune(self, *, everything: bool = False) -> Removal:
        """Remove images without a name (everything=True: all that no container uses)."""
        deleted: Names = []
        untagged: Names = []
        metadata = self._engine.store.metadata
        names = list_names(self._engine.store)
        for record in list(metadata.images.walk()):
            named = names.get(record.digest, ())
            if (everything or not named) and not self._engine.containers.using_image(record.digest):
                for reference in named:
                    if metadata.references.get(reference) is not None:  # an index's other image may have been first
                        metadata.references.delete(reference)
                        untagged.append(reference)
                metadata.images.delete(record.digest)
                deleted.append(record.digest)
        return Removal(tuple(untagged), tuple(deleted), self._engine.collect())

    def commit(
        self,
        container: str,
        reference: str | None = None,
        *,
        author: str = "",
        message: str = "",
        changes: Sequence[str] = (),
    ) -> Image:
        """Make an image from a container's image and what the container changed."""
        from pylayers.build.state import write_history
        from pylayers.diff.write import write_layer

        engine = self._engine
        name = None if reference is None else Reference.parse(reference).with_default_tag()
        found = engine.containers.get(container)
        base = load_image(engine.store, found.image_digest)
        state = apply_changes(state_of(base), changes)
        with engine.store.lease("commit"):
            with engine.containers.changes(found) as changed:
                layer = write_layer(engine.store, changed.records, changed.heap, changed.sources)
            state = replace(state, diff_ids=(*state.diff_ids, layer.diff_id), author=author or state.author)
            state = write_history(state, " ".join(found.arguments), EPOCH, empty_layer=False)
            if message:
                state = replace(state, history=(*state.history[:-1], replace(state.history[-1], comment=message)))
            return self._store(state, name)

    def compare_chunks(self, name: str, other: str) -> ChunkComparison:
        """Count how many bytes of an image another one lacks, by content-defined chunks: what a transfer would move.

        Cuts layers that weren't cut yet: one read of each.
        """
        from pylayers.store.chunk import chunk_layer, read_chunks

        def sizes(image: Image) -> dict[bytes, int]:
            layers = [chunk_layer(self._engine.store, diff_id) for diff_id in image.config.diff_ids]
            return {chunk.blake3: chunk.size_bytes for layer in layers for chunk in read_chunks(layer)}

        held, wanted = sizes(self.get(other)), sizes(self.get(name))
        missing = sum(size for digest, size in wanted.items() if digest not in held)
        return ChunkComparison(len(wanted), sum(wanted.values()), missing)

    def load(self, source: Path | IO[bytes]) -> Sequence[LoadedImage]:
        """Bring in every image of a docker-archive; layers, configs and diff_ids stay bit for bit.

        Raises NotFound, InvalidInput for what is no docker-archive, IntegrityError where a digest differs; nothing of
        a failed load stays.
        """
        from pylayers.transfer.load import load_archive

        try:
            return load_archive(self._engine.store, source)
        except BaseException:
            self._engine.collect()
            raise

    def save(self, names: Sequence[str], write_to: int) -> None:
        """Write images with their names as one docker-archive, which is an OCI layout too, to a file or pipe.

        A name that is an id or a digest brings its image along without a name. The same images give the same bytes.
        """
        from pylayers.transfer.archivetar import write_archive
        from pylayers.transfer.save import bundle_images

        chosen: dict[str, tuple[Image, list[str]]] = {}
        for name in names:
            image = self.get(name)
            _, references = chosen.setdefault(image.digest, (image, []))
            tag = self._named(name, image)
            if tag is not None and tag not in references:
                references.append(tag)
        with self._engine.store.lease("save"):
            write_archive(bundle_images(self._engine.store, list(chosen.values())), write_to)

    def save_layout(self, name: str, directory: Path) -> Path:
        """Write an image as an OCI image layout; data blocks are shared where the file system can, never files."""
        from pylayers.transfer.layout import write_layout
        from pylayers.transfer.save import bundle_images

        image = self.get(name)
        write_layout(bundle_images(self._engine.store, [(image, image.references[:1])]), directory)
        return directory


def this_platform() -> Platform:
    """Return the platform of this machine."""
    from pylayers.oci.platform import Platform

    return Platform.from_machine(os.uname().machine)


def state_of(image: Image) -> StageState:
    """Return an image as a state that can be changed."""
    from pylayers.build.state import StageState
    from pylayers.oci.platform import Platform

    config = image.config
    return StageState(
        platform=Platform(config.os, config.architecture, config.variant),
        diff_ids=config.diff_ids,
        config=config.config,
        history=config.history,
        author=config.author,
        shell=config.config.shell or ("/bin/sh", "-c"),
    )


def apply_changes(state: StageState, changes: Sequence[str]) -> StageState:
    """Apply --change instructions to a configuration. Raises InvalidInput for one that isn't allowed there."""
    if not changes:
        return state
    from pylayers.build.configure import configure
    from pylayers.build.stage import join_path
    from pylayers.dockerfile.parse import parse_instruction

    for number, text in enumerate(changes, 1):
        instruction = parse_instruction(text, "--change", number)
        if instruction.name not in CHANGE_INSTRUCTIONS:
            raise InvalidInput(
                f"{instruction.name} is not a valid change", hint=f"allowed: {', '.join(CHANGE_INSTRUCTIONS)}"
            )
        expanded = instruction.expand(state.environment())
        if instruction.name == "WORKDIR":
            path = join_path(state.config.working_dir or "/", getattr(expanded, "path", "/"))
            state = replace(state, config=replace(state.config, working_dir=path))
        else:
            state = configure(state, expanded, {}, {})
    return state


def store_state(engine: Engine, state: StageState, name: str | None) -> AssembledImage:
    """Store a state as an image, under a name if one is given."""
    config = ImageConfig(
        architecture=state.platform.architecture,
        os=state.platform.os,
        variant=state.platform.variant,
        author=state.author,
        created=EPOCH,
        config=state.config or RunConfig(),
        diff_ids=state.diff_ids,
        history=state.history,
    )
    sizes = [engine.store.layers.size_bytes(diff_id) for diff_id in state.diff_ids]
    return assemble(engine.store, config, sizes, name)
