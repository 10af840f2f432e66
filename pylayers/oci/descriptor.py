"""Descriptors: what is stored, under which digest, how large."""

from __future__ import annotations

from collections.abc import Mapping

from pylayers.oci.digest import check_digest
from pylayers.oci.document import Fields, decode, drop_empty, encode
from pylayers.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.oci.platform import Platform


@record
class Descriptor:
    """Point at stored content."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""
    data: str = ""  # base64 of the content itself, as written

    @classmethod
    def from_fields(cls, fields: Fields) -> Descriptor:
        """Read a descriptor object. Raises InvalidInput naming the field."""
        platform = fields.inner("platform")
        if not fields.has("size"):
            fields.fail("size", "missing")
        return cls(
            media_type=fields.required_text("mediaType"),
            digest=check_digest(fields.required_text("digest"), fields.locate("digest")),
            size_bytes=fields.integer("size", least=0),
            annotations=fields.text_map("annotations"),
            platform=None if platform is None else _read_platform(platform),
            urls=fields.texts("urls") or (),
            artifact_type=fields.text("artifactType"),
            data=fields.text("data"),
        )

    @classmethod
    def from_json(cls, content: bytes) -> Descriptor:
        """Parse one descriptor. Raises InvalidInput naming the field."""
        return cls.from_fields(Fields(decode(content, "descriptor"), "descriptor"))

    def to_document(self) -> dict[str, object]:
        """Return the JSON object."""
        optional = {
            "annotations": dict(self.annotations),
            "platform": None if self.platform is None else self.platform.to_document(),
            "urls": list(self.urls),
            "artifactType": self.artifact_type,
            "data": self.data,
        }
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size_bytes,
            **drop_empty(optional),
        }

    def to_json(self) -> bytes:
        """Return canonical bytes."""
        return encode(self.to_document())


def _read_platform(fields: Fields) -> Platform:
    from pylayers.oci.platform import Platform  # which only an index's descriptors have

    return Platform.from_fields(fields)
