"""SLSA provenance, version 1: how an image was made, and from what.

The fields are those that BuildKit documents for its build type, so that its readers understand them. Nothing in it
depends on the day: times are left out. Source: slsa.dev/spec/v1.1/provenance, BuildKit's
docs/attestations/slsa-definitions.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit, urlunsplit

from pylayers.image.attestation import Predicate, package_url
from pylayers.oci.platform import Platform
from pylayers.record import field, record

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
FILE_NAME = "provenance.json"
# Where a machine's own proxies would show; they may hold passwords as well.
HIDDEN_ARGUMENTS = frozenset(("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"))


@record
class Material:
    """Something the build took in: its URI, and its digests by algorithm."""

    uri: str
    digests: Mapping[str, str]


@record
class BuildRecord:
    """What is told of a build. Secrets and ssh agents are known by their ids alone."""

    platform: Platform
    builder_platform: Platform
    builder_id: str
    dockerfile_path: str
    dockerfile: bytes = b""
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)  # target, context:NAME and the like
    secrets: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ()
    materials: tuple[Material, ...] = ()
    steps: tuple[Mapping[str, object], ...] = ()
    complete: bool = False  # every input is among the materials: no local context
    reproducible: bool = False


def make_provenance(build: BuildRecord, mode: str) -> Predicate:
    """Return the predicate; mode=min leaves out what was passed to the build and the Dockerfile itself."""
    request: dict[str, object] = {"frontend": "dockerfile.v0", "locals": [{"name": "context"}, {"name": "dockerfile"}]}
    internal: dict[str, object] = {"builderPlatform": str(build.builder_platform)}
    metadata: dict[str, object] = {
        "buildkit_completeness": {"request": mode == "max", "resolvedDependencies": build.complete},
    }
    if build.reproducible:
        metadata["buildkit_reproducible"] = True
    if mode == "max":
        request.update(describe_request(build))
        internal["buildConfig"] = {"steps": list(build.steps)}
        source = {
            "filename": build.dockerfile_path,
            "language": "Dockerfile",
            "data": base64.b64encode(build.dockerfile).decode(),
        }
        metadata["buildkit_metadata"] = {"source": {"infos": [source]}}
    internal["platform"] = str(build.platform)
    document: dict[str, object] = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"configSource": {"path": build.dockerfile_path}, "request": request},
            "internalParameters": internal,
            "resolvedDependencies": [
                {"uri": material.uri, "digest": dict(material.digests)} for material in sort_materials(build.materials)
            ],
        },
        "runDetails": {"builder": {"id": build.builder_id}, "metadata": metadata},
    }
    return Predicate(PREDICATE_TYPE, document, FILE_NAME)


def describe_request(build: BuildRecord) -> dict[str, object]:
    """Return the parameters that the caller chose; proxies, and passwords in addresses, are left out."""
    arguments = {
        f"build-arg:{name}": strip_password(value)
        for name, value in build.arguments.items()
        if name.lower() not in HIDDEN_ARGUMENTS
    }
    arguments.update({f"label:{name}": value for name, value in build.labels.items()})
    arguments.update({name: strip_password(value) for name, value in build.options.items()})
    found: dict[str, object] = {}
    if arguments:
        found["args"] = arguments
    if build.secrets:
        found["secrets"] = [{"id": name} for name in sorted(set(build.secrets))]
    if build.ssh:
        found["ssh"] = [{"id": name} for name in sorted(set(build.ssh))]
    return found


def image_material(name: str, platform: str, digest: str) -> Material:
    """Return the material that a base image is; an image without a name is known by its digest alone."""
    algorithm, _, digits = digest.partition(":")
    uri = package_url(name, Platform.parse(platform)) if name else f"pkg:docker/{digest}"
    return Material(uri, {algorithm: digits})


def sort_materials(materials: Sequence[Material]) -> list[Material]:
    """Return each material once, in a fixed order: stages run side by side and find them in any."""
    distinct = {(material.uri, tuple(sorted(material.digests.items()))): material for material in materials}
    return [distinct[key] for key in sorted(distinct)]


def strip_password(value: str) -> str:
    """Take user and password out of a value that is an address."""
    if "://" not in value or "@" not in value:
        return value
    try:
        parts = urlsplit(value)
    except ValueError:
        return value
    if "@" not in parts.netloc:
        return value
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
