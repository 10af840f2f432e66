"""What --attest, --sbom and --provenance ask for, read and checked."""

from __future__ import annotations

from collections.abc import Sequence

from pylayers.build.output.option import parse_bool, split_fields
from pylayers.dockerfile.suggest import suffix_suggestion
from pylayers.errors import InvalidInput, Unsupported
from pylayers.record import record

KINDS = ("sbom", "provenance")
SBOM_KEYS = ("disabled", "format", "generator")
FORMATS = ("spdx", "cyclonedx")
PROVENANCE_KEYS = ("disabled", "mode", "version", "builder-id", "reproducible", "inline-only")
MODES = ("min", "max")


@record
class SbomRequest:
    """Ask for a bill of materials."""

    format: str = "spdx"


@record
class ProvenanceRequest:
    """Ask for SLSA provenance; reproducible is what the caller claims."""

    mode: str = "min"
    builder_id: str = ""
    reproducible: bool = False


@record
class Attestations:
    """What is to be attested."""

    sbom: SbomRequest | None = None
    provenance: ProvenanceRequest | None = None

    def __bool__(self) -> bool:
        return self.sbom is not None or self.provenance is not None


def parse_attestations(texts: Sequence[str]) -> Attestations:
    """Read every type=sbom|provenance,… Raises InvalidInput, Unsupported for what cannot be made here."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        given: dict[str, str] = {}
        for part in split_fields(text, "--attest"):
            key, equals, value = part.partition("=")
            if not equals:
                raise InvalidInput(f"invalid --attest value {part!r}", hint="for example: type=provenance,mode=max")
            given[key.strip().lower()] = value
        kind = given.pop("type", "")
        if kind not in KINDS:
            raise InvalidInput(
                f"--attest {text}: unknown attestation type {kind!r}{suffix_suggestion(kind, KINDS)}"
                if kind
                else f"--attest {text}: the attestation's type is missing",
                hint="use type=sbom or type=provenance",
            )
        if kind in found:
            raise InvalidInput(f"--attest {text}: {kind} is asked for twice")
        found[kind] = given
    return Attestations(read_sbom(found.get("sbom")), read_provenance(found.get("provenance")))


def read_sbom(given: dict[str, str] | None) -> SbomRequest | None:
    """Read the options of type=sbom."""
    if given is None or is_disabled("sbom", given, SBOM_KEYS):
        return None
    if given.get("generator"):
        raise Unsupported(
            f"--attest type=sbom,generator={given['generator']}: generator images are never fetched or executed",
            hint="leave generator out: pylayers reads the package databases itself",
        )
    form = given.get("format", "spdx")
    if form not in FORMATS:
        raise InvalidInput(
            f"unknown sbom format {form!r}{suffix_suggestion(form, FORMATS)}", hint="use spdx or cyclonedx"
        )
    return SbomRequest(form)


def read_provenance(given: dict[str, str] | None) -> ProvenanceRequest | None:
    """Read the options of type=provenance."""
    if given is None or is_disabled("provenance", given, PROVENANCE_KEYS):
        return None
    mode, version = given.get("mode", "min"), given.get("version", "v1")
    if mode not in MODES:
        raise InvalidInput(f"invalid provenance mode {mode!r}", hint="use mode=min or mode=max")
    if version != "v1":
        raise Unsupported(
            f"provenance version {version!r} is not written here", hint="leave version out, or use version=v1"
        )
    return ProvenanceRequest(mode, given.get("builder-id", ""), read_flag("provenance", given, "reproducible"))


def is_disabled(kind: str, given: dict[str, str], known: Sequence[str]) -> bool:
    """Check the option names, and tell whether the attestation is switched off."""
    for key in given:
        if key not in known:
            raise InvalidInput(
                f"type={kind} has no option {key!r}{suffix_suggestion(key, known)}",
                hint=f"its options are: {', '.join(known)}",
            )
    return read_flag(kind, given, "disabled")


def read_flag(kind: str, given: dict[str, str], key: str) -> bool:
    """Read a boolean option."""
    value = given.get(key, "false")
    found = parse_bool(value)
    if found is None:
        raise InvalidInput(f"type={kind}: {key} must be true or false, not {value!r}")
    return found


def expand_short(kind: str, value: str) -> str:
    """Return what --sbom=VALUE or --provenance=VALUE stands for: a boolean, or the options of --attest."""
    found = parse_bool(value)
    if found is None:
        return f"type={kind},{value}"
    return f"type={kind},disabled={str(not found).lower()}"
