"""What --output asks for: type=local|tar|oci|docker|image|cacheonly and their options, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pylayers.dockerfile.suggest import suffix_suggestion
from pylayers.errors import InvalidInput, Unsupported
from pylayers.oci.platform import Platform
from pylayers.oci.reference import Reference
from pylayers.record import field, record

STANDARD_OUTPUT = "-"
TREES = ("local", "tar")  # what holds the final tree, as opposed to layers
ARCHIVES = ("oci", "docker")
TYPES = (*TREES, *ARCHIVES, "image", "registry", "cacheonly")
COMPRESSIONS = {"uncompressed": (0, 0), "gzip": (0, 9), "zstd": (1, 22)}  # name → least and greatest level
ANNOTATION_TYPES = ("manifest", "index", "manifest-descriptor", "index-descriptor")
IMAGE_KEYS = ("name", "push", "compression", "compression-level", "rewrite-timestamp")
KEYS: Mapping[str, tuple[str, ...]] = {
    "local": ("dest", "platform-split", "attestation-prefix"),
    "tar": ("dest", "platform-split", "attestation-prefix"),
    "oci": ("dest", "tar", *IMAGE_KEYS),
    "docker": ("dest", "tar", *IMAGE_KEYS),
    "image": IMAGE_KEYS,
    "registry": IMAGE_KEYS,
    "cacheonly": (),
}
# What BuildKit knows beside: these say how it is done there, and change nothing of the result here.
IGNORED_KEYS = (
    "oci-mediatypes", "force-compression", "store", "unpack", "oci-artifact", "attestation-inline", "buildinfo",
    "buildinfo-attrs", "name-canonical", "dangling-name-prefix", "context", "registry.insecure", "push-by-digest",
)  # fmt: skip
_ANNOTATION_KEY = re.compile(r"annotation(?:-([a-z-]+))?(?:\[([^\]]*)\])?\.(.+)\Z")
_ANNOTATION_TYPE = re.compile(r"([a-z-]+)(?:\[([A-Za-z0-9_/-]+)\])?\Z")


@record
class Annotation:
    """One annotation: on what (`manifest`, `index`, …), and for which platform, None for each."""

    target: str
    platform: Platform | None
    key: str
    value: str

    def concerns(self, target: str, platform: Platform | None = None) -> bool:
        """Tell whether it goes on a document of that sort and platform."""
        if self.target != target:
            return False
        return self.platform is None or platform is None or self.platform.rank(platform) == 0


@record
class Output:
    """One --output."""

    type: str
    destination: str | None = None  # a path, "-" for standard output, None for the store
    names: tuple[str, ...] = ()  # full references
    as_tar: bool = True  # of oci: a tar, or a directory
    compression: str = "uncompressed"
    level: int | None = None
    annotations: tuple[Annotation, ...] = field(default=())
    rewrite_timestamp: bool = False
    platform_split: bool | None = None  # None: where there are several platforms
    attestation_prefix: str = ""

    @property
    def to_stdout(self) -> bool:
        """Tell whether it takes standard output."""
        return self.destination == STANDARD_OUTPUT


def parse_outputs(texts: Sequence[str]) -> tuple[Output, ...]:
    """Read every --output. Raises InvalidInput that names what is wrong, Unsupported for a registry."""
    outputs = tuple(parse_output(text) for text in texts if text)
    taking = [output for output in outputs if output.to_stdout]
    if len(taking) > 1:
        raise InvalidInput("several outputs go to standard output", hint="give all but one a dest=FILE")
    places = [output.destination for output in outputs if output.destination and not output.to_stdout]
    for place in places:
        if places.count(place) > 1:
            raise InvalidInput(f"several outputs go to {place}", hint="give each its own dest")
    return outputs


def parse_output(text: str) -> Output:
    """Read one --output: DIR, -, or type=TYPE,KEY=VALUE,…"""
    fields = split_fields(text, "--output")
    if fields == [text] and not text.startswith("type="):
        return Output("tar" if text == STANDARD_OUTPUT else "local", text)
    given: dict[str, str] = {}
    for part in fields:
        key, equals, value = part.partition("=")
        if not equals:
            raise InvalidInput(f"invalid --output value {part!r}", hint="give KEY=VALUE, such as type=local,dest=DIR")
        key = key.strip()
        given[key if key.lower().startswith("annotation") else key.lower()] = value
    kind = given.pop("type", "")
    if not kind:
        raise InvalidInput(f"--output {text}: type is required", hint=f"one of {', '.join(TYPES)}")
    if kind not in TYPES:
        raise InvalidInput(
            f"--output {text}: there is no type {kind!r}{suffix_suggestion(kind, TYPES)}",
            hint=f"one of {', '.join(TYPES)}",
        )
    annotations = tuple(read_annotation_key(key, given.pop(key)) for key in list(given) if key.startswith("annotation"))
    return build_output(text, kind, given, annotations)


def build_output(text: str, kind: str, given: dict[str, str], annotations: tuple[Annotation, ...]) -> Output:
    """Check the options that a type has, and fill in what is left out."""
    for key in given:
        if key not in KEYS[kind] and key not in IGNORED_KEYS:
            known = KEYS[kind]
            raise InvalidInput(
                f"--output {text}: type={kind} has no option {key!r}{suffix_suggestion(key, known)}",
                hint=f"its options are: {', '.join((*known, 'annotation.KEY') if kind not in TREES else known)}",
            )
    if annotations and kind not in (*ARCHIVES, "image"):
        raise InvalidInput(f"--output {text}: type={kind} has no manifest to annotate")
    if kind == "registry" or read_bool(text, given, "push", False):
        raise Unsupported(
            f"--output {text}: pushing to a registry is not supported yet",
            hint="write an archive with type=oci,dest=FILE and push it with: skopeo copy oci-archive:FILE docker://NAME",
        )
    compression, level = read_compression(text, kind, given)
    split = given.get("platform-split")
    output = Output(
        type=kind,
        destination=given.get("dest") or None,
        names=read_names(given.get("name", "")),
        as_tar=read_bool(text, given, "tar", True),
        compression=compression,
        level=level,
        annotations=annotations,
        rewrite_timestamp=read_bool(text, given, "rewrite-timestamp", False),
        platform_split=None if split is None else read_bool(text, given, "platform-split", True),
        attestation_prefix=given.get("attestation-prefix", ""),
    )
    return check_destination(text, output)


def check_destination(text: str, output: Output) -> Output:
    """Fill in or refuse a destination by the type's rule."""
    from pylayers.record import replace

    takes_directory = output.type == "local" or (output.type in ARCHIVES and not output.as_tar)
    if takes_directory:
        if output.destination is None:
            raise InvalidInput(f"--output {text}: dest is required for type={output.type}", hint="add dest=DIRECTORY")
        if output.to_stdout:
            raise InvalidInput(
                f"--output {text}: dest cannot be standard output for a directory", hint="use type=tar,dest=-"
            )
    elif output.destination is None and output.type in ("tar", "oci"):
        return replace(output, destination=STANDARD_OUTPUT)
    return output


def read_compression(text: str, kind: str, given: Mapping[str, str]) -> tuple[str, int | None]:
    """Return the compression of layers and its level."""
    name = given.get("compression") or "uncompressed"
    if name not in COMPRESSIONS:
        raise InvalidInput(
            f"--output {text}: unsupported compression {name!r}{suffix_suggestion(name, COMPRESSIONS)}",
            hint=f"one of {', '.join(COMPRESSIONS)}",
        )
    if kind == "image" and name != "uncompressed":
        raise Unsupported(
            f"--output {text}: the store keeps layers uncompressed, so that they need no unpacking",
            hint=f"compress what leaves it: type=oci,dest=FILE,compression={name}",
        )
    level = given.get("compression-level")
    if level is None:
        return name, None
    least, greatest = COMPRESSIONS[name]
    if name == "uncompressed" or not level.isdecimal() or not least <= int(level) <= greatest:
        raise InvalidInput(
            f"--output {text}: compression-level {level!r} does not fit compression={name}",
            hint="gzip has levels 0 to 9, zstd 1 to 22",
        )
    return name, int(level)


def read_names(text: str) -> tuple[str, ...]:
    """Read name=: one reference or several with commas between, as full names."""
    return tuple(str(Reference.parse(name.strip()).with_default_tag()) for name in text.split(",") if name.strip())


def read_bool(text: str, given: Mapping[str, str], key: str, default: bool) -> bool:
    """Read a boolean as Go does. Raises InvalidInput."""
    value = given.get(key)
    if value is None:
        return default
    found = parse_bool(value)
    if found is None:
        raise InvalidInput(f"--output {text}: {key} must be true or false, not {value!r}")
    return found


def parse_bool(value: str) -> bool | None:
    """Return what Go's ParseBool makes of a word; None for anything else."""
    if value in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    return False if value in ("0", "f", "F", "FALSE", "false", "False") else None


def split_fields(text: str, what: str) -> list[str]:
    """Split a comma-separated value; a field in double quotes may hold commas, and quotes that are doubled.

    Raises InvalidInput for a quote out of place.
    """
    fields: list[str] = []
    at = 0
    while True:
        if text.startswith('"', at):
            at += 1
            parts: list[str] = []
            while True:
                end = text.find('"', at)
                if end < 0:
                    raise InvalidInput(f"{what} {text}: a quote is not closed")
                parts.append(text[at:end])
                at = end + 1
                if not text.startswith('"', at):
                    break
                parts.append('"')
                at += 1
            if at < len(text) and text[at] != ",":
                raise InvalidInput(f"{what} {text}: a comma is expected after the closing quote")
            fields.append("".join(parts))
        else:
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            if '"' in text[at:end]:
                raise InvalidInput(f"{what} {text}: a quote inside a field", hint='quote the whole field: "dest=a,b"')
            fields.append(text[at:end])
            at = end
        if at >= len(text):
            return fields
        at += 1


def read_annotation_key(key: str, value: str) -> Annotation:
    """Read annotation.KEY, annotation-TYPE.KEY or annotation-TYPE[PLATFORM].KEY of an output."""
    found = _ANNOTATION_KEY.match(key)
    if found is None:
        raise InvalidInput(
            f"invalid annotation {key!r}", hint="give annotation.KEY=VALUE or annotation-index.KEY=VALUE"
        )
    return make_annotation(found[1] or "manifest", found[2], found[3], value)


def parse_annotations(texts: Sequence[str]) -> tuple[Annotation, ...]:
    """Read every --annotation [TYPE[PLATFORM],…:]KEY=VALUE."""
    found: list[Annotation] = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidInput(f"invalid annotation {text!r}, expected key=value")
        types, colon, key = name.partition(":")
        if not colon:
            found.append(make_annotation("manifest", None, name, value))
            continue
        for word in types.split(","):
            parts = _ANNOTATION_TYPE.match(word)
            if parts is None:
                raise InvalidInput(
                    f"invalid annotation type {word!r}, expected type and optional platform in square brackets"
                )
            found.append(make_annotation(parts[1], parts[2], key, value))
    return tuple(found)


def make_annotation(target: str, platform: str | None, key: str, value: str) -> Annotation:
    """Check an annotation's parts."""
    if target not in ANNOTATION_TYPES:
        raise InvalidInput(
            f"unknown annotation type {target!r}{suffix_suggestion(target, ANNOTATION_TYPES)}",
            hint=f"one of {', '.join(ANNOTATION_TYPES)}",
        )
    if not key:
        raise InvalidInput(f"an annotation of the {target} has no key")
    if platform is not None and target.startswith("index"):
        raise InvalidInput(f"annotation {key}: an index has no platform")
    return Annotation(target, Platform.parse(platform) if platform else None, key, value)
