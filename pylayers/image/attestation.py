"""Attestations as BuildKit attaches them: in-toto statements in a manifest of their own beside the image's.

Source: docs.docker.com/build/metadata/attestations/attestation-storage, in-toto attestation specification 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from pylayers.oci.config import ImageConfig
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.digest import digest_of
from pylayers.oci.document import encode
from pylayers.oci.manifest import MEDIA_CONFIG, Manifest
from pylayers.oci.platform import Platform
from pylayers.oci.reference import Reference
from pylayers.record import record

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MEDIA_STATEMENT = "application/vnd.in-toto+json"
PREDICATE_ANNOTATION = "in-toto.io/predicate-type"
TYPE_ANNOTATION = "vnd.docker.reference.type"
DIGEST_ANNOTATION = "vnd.docker.reference.digest"
ATTESTATION_TYPE = "attestation-manifest"
UNKNOWN = Platform("unknown", "unknown")
Subject = tuple[str, str]  # name, sha256 in hex


@record
class Predicate:
    """What is said of an image: its type, the document, and the name of the file that local outputs get."""

    type: str
    document: Mapping[str, object]
    file_name: str


@record
class AttestationManifest:
    """The documents of one image's attestations, and the descriptor that goes into the index."""

    descriptor: Descriptor
    documents: tuple[bytes, ...]  # statements, config, manifest


def write_statement(predicate: Predicate, subjects: Sequence[Subject]) -> bytes:
    """Return an in-toto statement: the predicate holds for the subjects."""
    return encode(
        {
            "_type": STATEMENT_TYPE,
            "predicateType": predicate.type,
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects],
            "predicate": predicate.document,
        }
    )


def attach(predicates: Sequence[Predicate], image: Descriptor, names: Sequence[str]) -> AttestationManifest:
    """Return the attestation manifest for an image's manifest, which has these full names."""
    platform = image.platform
    digest = image.digest.partition(":")[2]
    subjects = [(package_url(name, platform), digest) for name in names] or [("_", digest)]
    statements = [write_statement(predicate, subjects) for predicate in predicates]
    layers = tuple(
        Descriptor(MEDIA_STATEMENT, digest_of(statement), len(statement), {PREDICATE_ANNOTATION: predicate.type})
        for predicate, statement in zip(predicates, statements, strict=True)
    )
    # Of no use to anybody, but readers of image manifests expect a config whose diff_ids match the layers.
    config = ImageConfig("unknown", "unknown", diff_ids=tuple(layer.digest for layer in layers)).to_json()
    manifest = Manifest(Descriptor(MEDIA_CONFIG, digest_of(config), len(config)), layers).to_json()
    annotations = {TYPE_ANNOTATION: ATTESTATION_TYPE, DIGEST_ANNOTATION: image.digest}
    descriptor = Descriptor(image.media_type, digest_of(manifest), len(manifest), annotations, UNKNOWN)
    return AttestationManifest(descriptor, (*statements, config, manifest))


def is_attestation(descriptor: Descriptor) -> bool:
    """Tell whether an index's entry is an attestation manifest, which is no image."""
    return descriptor.annotations.get(TYPE_ANNOTATION) == ATTESTATION_TYPE


def package_url(name: str, platform: Platform | None) -> str:
    """Return an image's full name as a package URL, as BuildKit writes it."""
    reference = Reference.parse(name)
    path = "/".join(quote(part, safe="") for part in reference.familiar_name.split("/"))
    version = "@" + quote(reference.tag or reference.digest or "latest", safe="")
    query = "" if platform is None else f"?platform={quote(str(platform), safe='')}"
    return f"pkg:docker/{path}{version}{query}"
