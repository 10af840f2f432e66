"""Image manifests and indexes; docker's schema 2 documents are read and kept in their own media types."""

from __future__ import annotations

from collections.abc import Mapping

from pylayers.errors import InvalidInput, NotFound, Unsupported
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.digest import digest_of
from pylayers.oci.document import Fields, decode, drop_empty, encode
from pylayers.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.oci.platform import Platform

MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
MEDIA_LAYER_GZIP = MEDIA_LAYER_TAR + "+gzip"
MEDIA_LAYER_ZSTD = MEDIA_LAYER_TAR + "+zstd"
MEDIA_EMPTY = "application/vnd.oci.empty.v1+json"

MEDIA_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MEDIA_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MEDIA_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
MEDIA_DOCKER_LAYER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
MEDIA_DOCKER_LAYER_GZIP = MEDIA_DOCKER_LAYER_TAR + ".gzip"
MEDIA_DOCKER_LAYER_ZSTD = MEDIA_DOCKER_LAYER_TAR + ".zstd"
MEDIA_DOCKER_LAYER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
_MEDIA_DOCKER_V1 = frozenset(
    (
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    )
)

MANIFEST_MEDIA_TYPES = (MEDIA_MANIFEST, MEDIA_DOCKER_MANIFEST)
INDEX_MEDIA_TYPES = (MEDIA_INDEX, MEDIA_DOCKER_LIST)
# What an `Accept` header should list, best first.
ACCEPTED_MEDIA_TYPES = (*MANIFEST_MEDIA_TYPES, *INDEX_MEDIA_TYPES)

_COMPRESSIONS = {
    MEDIA_LAYER_TAR: "",
    MEDIA_LAYER_GZIP: "gzip",
    MEDIA_LAYER_ZSTD: "zstd",
    MEDIA_DOCKER_LAYER_TAR: "",
    MEDIA_DOCKER_LAYER_GZIP: "gzip",
    MEDIA_DOCKER_LAYER_ZSTD: "zstd",
    MEDIA_DOCKER_LAYER_FOREIGN: "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
}


def layer_compression(media_type: str) -> str:
    """Return "", "gzip" or "zstd" for a layer's media type. Raises Unsupported for another."""
    try:
        return _COMPRESSIONS[media_type]
    except KeyError:
        raise Unsupported(f"layer media type {media_type!r} is not a file system layer") from None


@record
class Manifest:
    """List one image's config and layers."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = MEDIA_MANIFEST
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""
    subject: Descriptor | None = None

    @classmethod
    def from_fields(cls, fields: Fields) -> Manifest:
        """Read a manifest object. Raises InvalidInput naming the field, Unsupported for docker's schema 1."""
        media_type = _check_kind(fields, MANIFEST_MEDIA_TYPES, MEDIA_MANIFEST)
        if fields.has("manifests"):
            # The same bytes would be an index to another reader (CVE-2021-41190).
            fields.fail("manifests", "an image manifest cannot be an index as well")
        config = fields.inner("config")
        layers = fields.inners("layers")
        if config is None:
            fields.fail("config", "missing")
        if layers is None:
            fields.fail("layers", "missing")
        subject = fields.inner("subject")
        return cls(
            config=Descriptor.from_fields(config),
            layers=tuple(Descriptor.from_fields(layer) for layer in layers),
            media_type=media_type,
            annotations=fields.text_map("annotations"),
            artifact_type=fields.text("artifactType"),
            subject=None if subject is None else Descriptor.from_fields(subject),
        )

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Parse a manifest. Raises InvalidInput naming the field."""
        return cls.from_fields(Fields(decode(content, "manifest"), "manifest"))

    def to_document(self) -> dict[str, object]:
        """Return the JSON object."""
        optional = {
            "annotations": dict(self.annotations),
            "artifactType": self.artifact_type,
            "subject": None if self.subject is None else self.subject.to_document(),
        }
        return {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.to_document(),
            "layers": [layer.to_document() for layer in self.layers],
            **drop_empty(optional),
        }

    def to_json(self) -> bytes:
        """Return canonical bytes; for a manifest that was pulled, keep the pulled bytes instead."""
        return encode(self.to_document())

    @property
    def digest(self) -> str:
        """Return the digest of the canonical bytes."""
        return digest_of(self.to_json())


@record
class Index:
    """List manifests, usually one per platform."""

    manifests: tuple[Descriptor, ...]
    media_type: str = MEDIA_INDEX
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""
    subject: Descriptor | None = None

    @classmethod
    def from_fields(cls, fields: Fields) -> Index:
        """Read an index object. Raises InvalidInput naming the field."""
        media_type = _check_kind(fields, INDEX_MEDIA_TYPES, MEDIA_INDEX)
        for name in ("config", "layers"):
            if fields.has(name):
                fields.fail(name, "an index cannot be an image manifest as well")
        manifests = fields.inners("manifests")
        if manifests is None:
            fields.fail("manifests", "missing")
        subject = fields.inner("subject")
        return cls(
            manifests=tuple(Descriptor.from_fields(manifest) for manifest in manifests),
            media_type=media_type,
            annotations=fields.text_map("annotations"),
            artifact_type=fields.text("artifactType"),
            subject=None if subject is None else Descriptor.from_fields(subject),
        )

    @classmethod
    def from_json(cls, content: bytes) -> Index:
        """Parse an index. Raises InvalidInput naming the field."""
        return cls.from_fields(Fields(decode(content, "index"), "index"))

    def select(self, platform: Platform) -> Descriptor:
        """Return the manifest that fits a platform best. Raises NotFound that lists what there is."""
        ranked = [
            (rank, position)
            for position, found in enumerate(self.manifests)
            if found.platform is not None and (rank := platform.rank(found.platform)) is not None
        ]
        if not ranked:
            offered = ", ".join(str(found.platform) for found in self.manifests if found.platform) or "no platform"
            raise NotFound(f"no image for {platform}: the index offers {offered}")
        return self.manifests[min(ranked)[1]]

    def to_document(self) -> dict[str, object]:
        """Return the JSON object."""
        optional = {
            "annotations": dict(self.annotations),
            "artifactType": self.artifact_type,
            "subject": None if self.subject is None else self.subject.to_document(),
        }
        return {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "manifests": [manifest.to_document() for manifest in self.manifests],
            **drop_empty(optional),
        }

    def to_json(self) -> bytes:
        """Return canonical bytes."""
        return encode(self.to_document())

    @property
    def digest(self) -> str:
        """Return the digest of the canonical bytes."""
        return digest_of(self.to_json())


def parse_manifest(content: bytes, media_type: str = "") -> Manifest | Index:
    """Parse a manifest or an index, whichever the document says it is.

    media_type is what the transport said (Content-Type, or the descriptor): a document that says otherwise is refused.
    """
    fields = Fields(decode(content, "manifest"), "manifest")
    stated = fields.text("mediaType")
    if media_type and stated and stated != media_type:
        fields.fail("mediaType", f"{stated!r}, but it was announced as {media_type!r}")
    kind = stated or media_type
    if kind in INDEX_MEDIA_TYPES or (not kind and fields.has("manifests")):
        return Index.from_fields(fields)
    return Manifest.from_fields(fields)


def _check_kind(fields: Fields, allowed: tuple[str, ...], default: str) -> str:
    media_type = fields.text("mediaType", default)
    version = fields.integer("schemaVersion")
    if version == 1 or media_type in _MEDIA_DOCKER_V1:
        raise Unsupported(
            "docker schema 1 manifests are not supported", hint="push the image again with a current tool"
        )
    if version != 2:
        fields.fail("schemaVersion", f"expected 2, found {version}" if version else "missing")
    if media_type not in allowed:
        raise InvalidInput(f"{fields.locate('mediaType')}: {media_type!r} is not one of {', '.join(allowed)}")
    return media_type
