"""Platforms: os/architecture[/variant], normalised as containerd does."""

from __future__ import annotations

from pylayers.errors import InvalidInput
from pylayers.oci.document import Fields, drop_empty
from pylayers.record import record

_DIGITS = frozenset("0123456789")
_PART = _DIGITS | frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-")
_SYSTEMS = frozenset(
    ("aix", "android", "darwin", "dragonfly", "freebsd", "illumos", "ios", "js", "linux", "netbsd", "openbsd", "plan9")
) | {"solaris", "wasip1", "windows"}
# What uname and people say -> (GOARCH, variant).
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
    "armv8l": ("arm", "v8"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
# The variant that an absent one means.
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@record
class Platform:
    """Name what an image runs on. `variant` is "" where it is the architecture's default, except arm's v7."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse "linux/arm64/v8", "arm64" or "linux"; what is left out is linux, or amd64 for a bare system."""
        parts = text.split("/")
        if len(parts) > 3 or not all(part and _PART.issuperset(part) for part in parts):
            raise InvalidInput(
                f"platform {text!r}: expected os/architecture[/variant]", hint="for example: linux/arm64/v8"
            )
        if len(parts) == 1:
            word = parts[0].lower()
            return normalize(word, "amd64", "") if word in _SYSTEMS else normalize("linux", word, "")
        return normalize(parts[0], parts[1], parts[2] if len(parts) == 3 else "")

    @classmethod
    def from_machine(cls, machine: str, system: str = "linux") -> Platform:
        """Return the platform that os.uname() describes."""
        return normalize(system, machine, "")

    @classmethod
    def from_fields(cls, fields: Fields) -> Platform:
        """Read a descriptor's platform object; unlike parse, nothing is normalised (the bytes are kept)."""
        return cls(
            os=fields.required_text("os"),
            architecture=fields.required_text("architecture"),
            variant=fields.text("variant"),
            os_version=fields.text("os.version"),
            os_features=fields.texts("os.features") or (),
        )

    def to_document(self) -> dict[str, object]:
        """Return the JSON object."""
        optional = {"variant": self.variant, "os.version": self.os_version, "os.features": list(self.os_features)}
        return {"os": self.os, "architecture": self.architecture, **drop_empty(optional)}

    def normalized(self) -> Platform:
        """Return the platform in its one usual spelling."""
        usual = normalize(self.os, self.architecture, self.variant)
        return Platform(usual.os, usual.architecture, usual.variant, self.os_version, self.os_features)

    def rank(self, offered: Platform) -> int | None:
        """Rank how well an image of platform `offered` runs on this one: 0 is equal, higher is worse, None not at all.

        A lower variant of one architecture runs on a higher one (arm v6 on v7, amd64 v1 on v3).
        """
        mine, other = self.normalized(), offered.normalized()
        if (mine.os, mine.architecture) != (other.os, other.architecture):
            return None
        default = _DEFAULT_VARIANTS.get(mine.architecture, "")
        wanted, found = mine.variant or default, other.variant or default
        if wanted == found:
            return 0
        numbers = [int(variant[1:]) for variant in (wanted, found) if _is_numbered(variant)]
        if len(numbers) != 2 or numbers[1] > numbers[0]:
            return None
        return numbers[0] - numbers[1]

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def _is_numbered(variant: str) -> bool:
    return variant[:1] == "v" and 2 <= len(variant) <= 4 and _DIGITS.issuperset(variant[1:])


def normalize(system: str, architecture: str, variant: str) -> Platform:
    """Return the platform in its one usual spelling."""
    system, architecture, variant = system.lower(), architecture.lower(), variant.lower()
    if system == "macos":
        system = "darwin"
    if architecture in _ARCHITECTURES:
        architecture, implied = _ARCHITECTURES[architecture]
        variant = variant or implied
    if variant.isdigit():
        variant = f"v{variant}"
    if architecture == "arm":
        variant = variant or "v7"
    elif variant == _DEFAULT_VARIANTS.get(architecture):
        variant = ""
    return Platform(system, architecture, variant)
