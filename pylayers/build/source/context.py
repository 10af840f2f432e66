"""Named contexts (--build-context): directories, images, OCI layouts and tars that stand in for names.

A context named like a stage takes that stage's place, one named like an image takes the image's, as in BuildKit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pylayers.build.source.local import LocalSource
from pylayers.build.state import StageState
from pylayers.errors import IntegrityError, InvalidInput, NotFound, SourceSpan, Unsupported, translate_os_error
from pylayers.oci.config import ImageConfig, RunConfig
from pylayers.oci.digest import digest_hex, digest_of, is_digest
from pylayers.oci.document import DOCUMENT_LIMIT_BYTES
from pylayers.oci.manifest import Index, Manifest, parse_manifest
from pylayers.oci.platform import Platform
from pylayers.oci.reference import Reference

if TYPE_CHECKING:
    from pylayers.build.session import BuildSession

IMAGE = "docker-image://"
LAYOUT = "oci-layout://"
REFERENCE_ANNOTATION = "org.opencontainers.image.ref.name"


def context_key(name: str) -> str:
    """Return the name that a context is found by: docker.io/library/alpine:latest is alpine."""
    try:
        return Reference.parse(name).familiar.removesuffix(":latest")
    except InvalidInput:
        return name


def open_contexts(given: Mapping[str, str], cache_of: LocalSource) -> dict[str, LocalSource]:
    """Open the named contexts that are directories; look whether the others are there. Raises NotFound."""
    found: dict[str, LocalSource] = {}
    for name, place in given.items():
        check_name(name)
        if place.startswith(IMAGE):
            continue
        if place.startswith(LAYOUT):
            directory, _ = split_layout(place)
            if not (directory / "index.json").is_file():
                raise NotFound(f"--build-context {name}={place}: {directory} is not an OCI image layout")
            continue
        if "://" in place or place.startswith("target:"):
            raise Unsupported(
                f"--build-context {name}={place}: this kind of context is not supported",
                hint="give a directory, a tar, docker-image://REFERENCE or oci-layout://DIRECTORY",
            )
        path = Path(os.path.realpath(place))
        if path.is_dir():
            found[context_key(name)] = open_directory(path, cache_of)
        elif not path.is_file():
            raise NotFound(f"--build-context {name}={place}: no such file or directory")
    return found


def open_directory(path: Path, cache_of: LocalSource) -> LocalSource:
    """Open a directory as a context, less what its own .dockerignore names."""
    from pylayers.dockerfile.ignore import parse

    try:
        content = (path / ".dockerignore").read_bytes()
    except FileNotFoundError:
        return LocalSource(path, cache=cache_of.cache)
    except OSError as error:
        raise translate_os_error(error, "read ignore file") from error
    return LocalSource(path, parse(content), cache_of.cache, digest_hex(digest_of(content)))


def check_name(name: str) -> None:
    """Refuse a name that no FROM could have."""
    try:
        Reference.parse(name)
    except InvalidInput as error:
        raise InvalidInput(f"invalid context name {name}: {error.message}", hint=error.hint) from None


def load_context(session: BuildSession, place: str, platform: Platform, span: SourceSpan) -> StageState:
    """Return the state that a FROM of a named context starts from."""
    if place.startswith(LAYOUT):
        return load_layout(session, place, platform, span)
    from pylayers.transfer.rootfs import import_layer

    path = Path(os.path.realpath(place))
    diff_id = pack_directory(session, path, span) if path.is_dir() else import_layer(session.store, path).diff_id
    session.hold("layer", diff_id)
    return state_of(platform, ImageConfig(platform.architecture, platform.os, diff_ids=(diff_id,)))


def state_of(platform: Platform, config: ImageConfig) -> StageState:
    """Return an image config as the state of a stage; what sets no directory starts at the root."""
    from pylayers.oci.config import History

    run = config.config if config.config != RunConfig() else RunConfig(working_dir="/")
    history = config.history or tuple(History(created_by="named context") for _ in config.diff_ids)
    return StageState(
        platform=platform,
        diff_ids=config.diff_ids,
        config=run,
        history=history,
        author=config.author,
        shell=run.shell or ("/bin/sh", "-c"),
        base_count=len(config.diff_ids),
    )


def pack_directory(session: BuildSession, path: Path, span: SourceSpan) -> str:
    """Store a directory as a layer, all of it owned by root; return its diff_id."""
    from pylayers.build.copy.step import copy_trees
    from pylayers.dockerfile.instructions import Copy

    name = next(key for key, source in session.contexts.items() if os.fspath(source.directory) == os.fspath(path))
    every = Copy(span=span, original=f"COPY --from={name} . /", sources=(".",), destination="/", from_stage=name)
    state = StageState(session.platform, config=RunConfig(working_dir="/"))
    found, _ = copy_trees(session, state, every, 0)
    if found.diff_id is None:
        raise InvalidInput(f"{path} holds nothing that a stage could start from", span=span)
    return found.diff_id


def split_layout(place: str) -> tuple[Path, str]:
    """Split oci-layout://DIR[:TAG|@DIGEST] into the directory and the tag or digest."""
    text = place.removeprefix(LAYOUT)
    directory, at, digest = text.partition("@")
    if at:
        return Path(directory), digest
    head, colon, tag = text.rpartition(":")
    return (Path(head), tag) if colon and "/" not in tag else (Path(text), "")


def load_layout(session: BuildSession, place: str, platform: Platform, span: SourceSpan) -> StageState:
    """Bring an image of an OCI layout into the store. Raises NotFound, IntegrityError."""
    from pylayers.transfer.rootfs import import_layer

    directory, wanted = split_layout(place)
    manifest = choose_manifest(directory, wanted, platform, span)
    content = read_blob(directory, manifest.config.digest)
    config = ImageConfig.from_json(content)
    if len(config.diff_ids) != len(manifest.layers):
        raise IntegrityError(
            f"{place}: the config names {len(config.diff_ids)} layers, the manifest {len(manifest.layers)}"
        )
    for diff_id, descriptor in zip(config.diff_ids, manifest.layers, strict=True):
        session.hold("layer", diff_id)
        if session.store.layers.exists(diff_id):
            continue
        made = import_layer(session.store, blob_path(directory, descriptor.digest))
        session.hold("layer", made.diff_id)
        if made.diff_id != diff_id:
            raise IntegrityError(
                f"{place}: layer {descriptor.digest} holds {made.diff_id}, and the config says {diff_id}"
            )
    offered = Platform(config.os, config.architecture, config.variant)
    return state_of(offered, config)


def choose_manifest(directory: Path, wanted: str, platform: Platform, span: SourceSpan) -> Manifest:
    """Return the manifest of a tag or digest (or the only one) for a platform."""
    index = parse_manifest(read_file(directory / "index.json"))
    document: Manifest | Index = index
    if isinstance(index, Index) and wanted:
        if is_digest(wanted):
            document = parse_manifest(read_blob(directory, wanted))
        else:
            names = (wanted, f":{wanted}")
            named = [one for one in index.manifests if one.annotations.get(REFERENCE_ANNOTATION) in names
                     or one.annotations.get(REFERENCE_ANNOTATION, "").endswith(f":{wanted}")]  # fmt: skip
            if not named:
                tags = [one.annotations.get(REFERENCE_ANNOTATION, "") for one in index.manifests]
                raise NotFound(
                    f"{directory} has no image tagged {wanted!r}", span=span,
                    hint="its tags are: " + (", ".join(tag for tag in tags if tag) or "none"),
                )  # fmt: skip
            document = parse_manifest(read_blob(directory, named[0].digest))
    while isinstance(document, Index):
        only = document.manifests[0] if len(document.manifests) == 1 else document.select(platform)
        document = parse_manifest(read_blob(directory, only.digest))
    return document


def blob_path(directory: Path, digest: str) -> Path:
    """Return where a layout keeps a blob. Raises InvalidInput for another algorithm."""
    if not is_digest(digest):
        raise InvalidInput(f"{directory}: {digest!r} is no digest")
    return directory / "blobs" / "sha256" / digest_hex(digest)


def read_blob(directory: Path, digest: str) -> bytes:
    """Read a document and hold it against its digest."""
    content = read_file(blob_path(directory, digest))
    if digest_of(content) != digest:
        raise IntegrityError(f"{blob_path(directory, digest)} is not what its name says")
    return content


def read_file(path: Path) -> bytes:
    """Read a document of bounded size."""
    try:
        with path.open("rb") as stream:
            content = stream.read(DOCUMENT_LIMIT_BYTES + 1)
    except OSError as error:
        raise translate_os_error(error, f"read {path}") from error
    if len(content) > DOCUMENT_LIMIT_BYTES:
        raise InvalidInput(f"{path} is larger than {DOCUMENT_LIMIT_BYTES} bytes")
    return content
