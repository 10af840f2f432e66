"""Hand out what was built: to the store, and to every --output, with annotations and attestations.

Imported only by builds that ask for more than an image in the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pylayers.build.cache.key import hash_fields
from pylayers.build.cache.step import CachedStep
from pylayers.build.output.attest import Attestations, parse_attestations
from pylayers.build.output.option import ARCHIVES, TREES, Annotation, Output, parse_annotations, parse_outputs
from pylayers.errors import InvalidInput, Unsupported
from pylayers.image.assemble import make_manifest, store_image
from pylayers.image.attestation import AttestationManifest, Predicate, attach, write_statement
from pylayers.oci.config import ImageConfig
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.manifest import MEDIA_LAYER_TAR, MEDIA_MANIFEST, Index, Manifest
from pylayers.oci.platform import Platform
from pylayers.record import field, record, replace
from pylayers.transfer.content import Blob, Bundle, DockerImage, name_root, pack_layers

if TYPE_CHECKING:
    from pylayers.build.request import BuildOptions
    from pylayers.build.session import BuildSession
    from pylayers.diff.flatten import Tree
    from pylayers.store.layer import Layer


@record
class Request:
    """What a build is to hand out, and how."""

    outputs: tuple[Output, ...]
    annotations: tuple[Annotation, ...]
    attestations: Attestations


@record
class BuiltImage:
    """One platform's result. Its layers are stored, the lowest `base_count` of them not made here."""

    config: ImageConfig
    base_count: int = 0
    predicates: tuple[Predicate, ...] = ()

    @property
    def platform(self) -> Platform:
        """Return what it runs on."""
        return Platform(self.config.os, self.config.architecture, self.config.variant)


@record
class Made:
    """An image as one output has it: its documents, and the descriptor of the manifest or index on top."""

    root: Descriptor
    images: tuple[BuiltImage, ...]
    manifests: tuple[Manifest, ...]
    index: Index | None
    attestations: tuple[AttestationManifest, ...]
    layers: tuple[Blob, ...] = ()


@record
class Delivered:
    """What the result tells. config_digest is empty for an image index."""

    digest: str
    config_digest: str
    names: tuple[str, ...]
    descriptor: Descriptor
    diff_ids: tuple[str, ...] = ()
    provenance: Mapping[str, object] | None = field(default=None)


def wanted(options: BuildOptions) -> bool:
    """Tell whether a build asks for more than an image in the store."""
    return bool(options.outputs or options.annotations or options.attestations or options.rewrite_timestamp)


def read_delivery(options: BuildOptions) -> Request:
    """Read what a build is to hand out, before anything is built. Raises InvalidInput, Unsupported."""
    outputs = parse_outputs(options.outputs) or (Output("image"),)
    for output in outputs:
        check_place(output)
    annotations = parse_annotations(options.annotations)
    attestations = parse_attestations(options.attestations)
    if attestations or len(options.platforms) > 1:
        from pylayers.build.output.witness import check_indexable

        check_indexable(outputs, "attestations" if attestations else "images of several platforms")
    indexed = bool(attestations) or len(options.platforms) > 1
    every = [*annotations, *(one for output in outputs for one in output.annotations)]
    if not indexed and any(one.target.startswith("index") for one in every):
        raise InvalidInput(
            "index annotations are not supported for a single platform",
            hint="annotate the manifest, or attach something: --provenance=true makes an index",
        )
    return Request(outputs, annotations, attestations)


def check_place(output: Output) -> None:
    """Refuse a destination that can't be written as asked."""
    if output.to_stdout:
        import sys

        if sys.stdout is not None and sys.stdout.isatty():
            raise InvalidInput(
                f"type={output.type} would write to the terminal", hint="add dest=FILE, or redirect standard output"
            )
        return
    if output.destination is None:
        return
    place = Path(output.destination)
    directory = output.type == "local" or (output.type in ARCHIVES and not output.as_tar)
    if directory and place.exists() and not place.is_dir():
        raise InvalidInput(f"destination directory {place} is a file")
    if not directory and place.is_dir():
        raise InvalidInput(
            f"destination file {place} is a directory", hint=f"name a file in it: dest={place}/image.tar"
        )


def deliver(session: BuildSession, images: Sequence[BuiltImage], references: Sequence[str]) -> Delivered:
    """Hand out images, one for each platform, to every output; return what the result names."""
    request = read_delivery(session.options)
    first: Delivered | None = None
    for output in request.outputs:
        # Names come from -t, as in buildx; a name of the output's own counts where there is none.
        names = tuple(references) or output.names
        given = [rewrite_image(session, output, image) for image in images]
        made = make_image(session, output, request.annotations, given, names)
        if output.type in TREES:
            write_trees(session, output, given)
        elif output.type == "image" or (output.type == "docker" and output.destination is None):
            keep_image(session, made, names)
        elif output.type in ARCHIVES:
            write_bundle(output, bundle_of(made, names))
        first = first or describe(made, names)
    if first is None:
        raise InvalidInput("there is no output")
    return first


def describe(made: Made, names: tuple[str, ...]) -> Delivered:
    """Return what the result tells of an image."""
    single = made.index is None
    provenance = [one.document for one in made.images[0].predicates if one.file_name == "provenance.json"]
    return Delivered(
        digest=made.root.digest,
        config_digest=made.manifests[0].config.digest if single else "",
        names=names,
        descriptor=made.root,
        diff_ids=made.images[0].config.diff_ids,
        provenance=provenance[0] if provenance else None,
    )


def rewrite_image(session: BuildSession, output: Output, image: BuiltImage) -> BuiltImage:
    """Return the image with no file of a layer made here younger than SOURCE_DATE_EPOCH, where that is asked for."""
    options = session.options
    if not (output.rewrite_timestamp or options.rewrite_timestamp):
        return image
    from pylayers.build.event import BuildWarning
    from pylayers.diff.flatten import rewrite_times

    if options.source_date_epoch_s is None:
        session.emit(BuildWarning("rewrite-timestamp is given, but no SOURCE_DATE_EPOCH: no time is rewritten"))
        return image
    diff_ids = list(image.config.diff_ids)
    for position in range(image.base_count, len(diff_ids)):
        key = hash_fields("rewrite", (diff_ids[position].encode(), str(options.source_date_epoch_s).encode()))
        found = session.reuse(key)
        if found is None or found.diff_id is None:
            layer = session.store.layers.open(diff_ids[position])
            made = rewrite_times(session.store, layer, options.source_date_epoch_s * 10**9)
            found = CachedStep(made.diff_id, made.size_bytes)
            session.hold("layer", made.diff_id)
            session.cache.record(key, "", "rewrite", "", found)
        diff_ids[position] = found.diff_id or ""
    return replace(image, config=replace(image.config, diff_ids=tuple(diff_ids)))


def make_image(
    session: BuildSession,
    output: Output,
    annotations: Sequence[Annotation],
    images: Sequence[BuiltImage],
    names: Sequence[str],
) -> Made:
    """Make the manifests, attestations and index of an output."""
    every = (*annotations, *output.annotations)
    entries: list[Descriptor] = []
    manifests: list[Manifest] = []
    attached: list[AttestationManifest] = []
    blobs: list[Blob] = []
    for image in images:
        if output.type in ARCHIVES and output.destination is not None:
            packed = pack_layers(session.store, image.config.diff_ids, output.compression, output.level)
            layers = [descriptor for descriptor, _ in packed]
            blobs += [blob for _, blob in packed]
        else:
            layers = [
                Descriptor(MEDIA_LAYER_TAR, diff_id, session.store.layers.size_bytes(diff_id))
                for diff_id in image.config.diff_ids
            ]
        notes = collect(every, "manifest", image.platform)
        manifest = make_manifest(image.config, layers, notes)
        content = manifest.to_json()
        notes = collect(every, "manifest-descriptor", image.platform)
        entry = Descriptor(MEDIA_MANIFEST, manifest.digest, len(content), notes, image.platform)
        manifests.append(manifest)
        entries.append(entry)
        if image.predicates:
            attached.append(attach(image.predicates, entry, names))
    index: Index | None = None
    root = entries[0]
    if len(entries) > 1 or attached:
        listed = (*entries, *(one.descriptor for one in attached))
        index = Index(listed, annotations=collect(every, "index", None))
        content = index.to_json()
        root = Descriptor(index.media_type, index.digest, len(content), collect(every, "index-descriptor", None))
    return Made(root, tuple(images), tuple(manifests), index, tuple(attached), tuple(blobs))


def collect(annotations: Sequence[Annotation], target: str, platform: Platform | None) -> dict[str, str]:
    """Return the annotations of one document; a later one of a key wins."""
    return {one.key: one.value for one in annotations if one.concerns(target, platform)}


def keep_image(session: BuildSession, made: Made, names: Sequence[str]) -> None:
    """Put an image into the store and let its names stand for it."""
    store = session.store
    for image, manifest in zip(made.images, made.manifests, strict=True):
        if image.config.diff_ids:
            session.trees.record(image.config.diff_ids)
        store_image(store, image.config, manifest)
    if made.index is not None:
        for attestation in made.attestations:
            for document in attestation.documents:
                store.blobs.put(document)
        store.blobs.put(made.index.to_json())
    for name in names:
        if store.metadata.references.get(name) != made.root.digest:
            store.metadata.references.set(name, made.root.digest)


def bundle_of(made: Made, names: Sequence[str]) -> Bundle:
    """Return what an archive of an image holds."""
    documents = [document for attestation in made.attestations for document in attestation.documents]
    documents += [image.config.to_json() for image in made.images]
    documents += [manifest.to_json() for manifest in made.manifests]
    if made.index is not None:
        documents.append(made.index.to_json())
    docker = tuple(
        DockerImage(manifest.config.digest, tuple(names), tuple(layer.digest for layer in manifest.layers))
        for manifest in made.manifests
    )
    return Bundle((*made.layers, *map(Blob.of, documents)), name_root(made.root, names), docker)


def write_bundle(output: Output, bundle: Bundle) -> None:
    """Write an OCI layout or archive, or docker's archive."""
    from pylayers.transfer.archivetar import write_archive, write_output
    from pylayers.transfer.layout import write_layout

    place = output.destination or "-"
    if output.type == "docker" and len(bundle.docker) > 1:
        raise Unsupported("docker's archives hold no image of several platforms", hint="use type=oci")
    if output.type == "oci":
        bundle = replace(bundle, docker=())
    try:
        if output.as_tar:
            write_output(place, lambda descriptor: write_archive(bundle, descriptor))
        else:
            write_layout(bundle, Path(place), merge=True)
    finally:
        for blob in bundle.blobs:
            if isinstance(blob.content, Path) and blob.content.name != "layer.tar":
                blob.content.unlink(missing_ok=True)


def write_trees(session: BuildSession, output: Output, images: Sequence[BuiltImage]) -> None:
    """Write the final trees, as files or as a tar; several platforms each in a folder, such as linux_amd64."""
    from pylayers.diff.flatten import Tree, stamp_table
    from pylayers.diff.merge import merge_layers
    from pylayers.transfer.archivetar import write_output
    from pylayers.transfer.tree import write_directory, write_tar

    split = len(images) > 1 if output.platform_split is None else output.platform_split
    if not split and len(images) > 1:
        raise Unsupported(
            "several platforms in one folder are not supported", hint="leave platform-split out, or give one --platform"
        )
    trees = []
    for image in images:
        layers = session.trees.layers(image.config.diff_ids)
        if image.predicates:
            tree = Tree(layers, merge_layers(layers))
            layers = [*layers, statement_layer(session, output, image, tree)]
        prefix = str(image.platform).replace("/", "_").encode() if split else b""
        table = merge_layers(layers)
        if session.options.source_date_epoch_s is not None:
            table = stamp_table(table, session.options.source_date_epoch_s * 10**9)
        trees.append(Tree(layers, table, prefix))
    if output.type == "tar":
        write_output(output.destination or "-", lambda descriptor: write_tar(session.store, trees, descriptor))
        return
    for tree in trees:
        write_directory(tree, Path(output.destination or ".") / tree.prefix.decode())


def statement_layer(session: BuildSession, output: Output, image: BuiltImage, tree: Tree) -> Layer:
    """Return a layer with a tree's attestations as files; what they speak of are the tree's own files."""
    import os
    import stat

    from blake3 import blake3

    from pylayers.diff.flatten import hash_files
    from pylayers.store.entry import FLAG_HASHED, FLAG_IMPLICIT, TableBuilder
    from pylayers.store.layer import Layer
    from pylayers.store.row import Entry

    subjects = [(path.decode(errors="replace"), digest) for path, digest in hash_files(tree)]
    builder, content = TableBuilder(), b""
    builder.add(b"", Entry(mode=stat.S_IFDIR | 0o755, flags=FLAG_IMPLICIT))
    for predicate in image.predicates:
        statement = write_statement(predicate, subjects)
        mode, mtime_ns = stat.S_IFREG | 0o644, session.epoch_s * 10**9
        entry = Entry(
            mode=mode,
            size_bytes=len(statement),
            data_offset=len(content),
            mtime_ns=mtime_ns,
            flags=FLAG_HASHED,
            blake3=blake3(statement).digest(),
        )
        builder.add(os.fsencode(output.attestation_prefix + predicate.file_name), entry)
        content += statement
    path = session.store.scratch("statement")
    path.write_bytes(content)
    return Layer("", len(content), str(path), builder.build()[0])
