"""Image references in docker's grammar: [registry/]repository[:tag][@digest]."""

from __future__ import annotations

from pylayers.errors import InvalidInput
from pylayers.oci.digest import check_digest
from pylayers.record import field, record, replace

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_REGISTRY = "index.docker.io"
_OFFICIAL = "library/"
NAME_LIMIT = 255

_DIGITS = frozenset("0123456789")
_LOWER = _DIGITS | frozenset("abcdefghijklmnopqrstuvwxyz")
_LETTERS = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_HEX = frozenset("0123456789abcdef")
_IDENTIFIER_LENGTH = 64
_TAG_LIMIT = 128


@record
class Reference:
    """Name an image. `tag` and `digest` are None where the text has none; see with_default_tag."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse as docker does: "ubuntu" is docker.io/library/ubuntu. Raises InvalidInput saying what is wrong."""
        name, tag, digest = _split(text)
        registry, repository = _split_registry(name)
        return _checked(text, registry, repository, tag, digest)

    @classmethod
    def parse_lenient(cls, text: str) -> Reference:
        """Parse like `parse`, but lower upper-case letters in the repository and say so in `warnings`."""
        stripped = text.strip()
        name, tag, digest = _split(stripped)
        registry, repository = _split_registry(name)
        if registry != registry.lower() and not _looks_like_host(registry):
            # Docker takes "Foo/bar" for registry Foo; a person means docker.io/foo/bar.
            registry, repository = _split_registry(name.lower())
        warnings = [f"blanks around {stripped!r} were ignored"] if stripped != text else []
        found = _checked(stripped, registry, repository.lower(), tag, digest)
        if name != name.lower() and (repository != repository.lower() or not name.startswith(registry)):
            warnings.append(f"repository names are lower case: {name!r} was read as {found.familiar_name!r}")
        return replace(found, warnings=tuple(warnings))

    @property
    def name(self) -> str:
        """Return registry/repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar_name(self) -> str:
        """Return the name as people write it: docker.io and library/ left out."""
        if self.registry != DEFAULT_REGISTRY:
            return self.name
        short = self.repository.removeprefix(_OFFICIAL)
        return short if "/" not in short else self.repository

    @property
    def familiar(self) -> str:
        """Return the whole reference as people write it."""
        return self.familiar_name + self._suffix()

    def with_default_tag(self) -> Reference:
        """Return the reference with tag latest when it has neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """Return the reference with another tag and no digest."""
        return _checked(tag, self.registry, self.repository, tag, None)

    def with_digest(self, digest: str) -> Reference:
        """Return the reference pinned to a digest; the tag stays."""
        return replace(self, digest=check_digest(digest))

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.name + self._suffix()


def _split(text: str) -> tuple[str, str | None, str | None]:
    name, at, digest = text.partition("@")
    tag: str | None = None
    head, colon, tail = name.rpartition(":")
    if colon and "/" not in tail:  # otherwise the colon belongs to a registry's port
        name, tag = head, tail
    return name, tag, digest if at else None


def _looks_like_host(part: str) -> bool:
    return "." in part or ":" in part or part.lower() == "localhost"


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or (not _looks_like_host(first) and first.lower() == first):
        registry, repository = DEFAULT_REGISTRY, name
    else:
        registry, repository = first, rest
    if registry == _LEGACY_REGISTRY:
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = _OFFICIAL + repository
    return registry, repository


def _checked(text: str, registry: str, repository: str, tag: str | None, digest: str | None) -> Reference:
    def refuse(message: str, hint: str | None = None) -> InvalidInput:
        return InvalidInput(f"invalid reference {text[:300]!r}: {message}", hint=hint)

    short = repository.removeprefix(_OFFICIAL)
    if not text or not short:
        raise refuse("the name is empty")
    if len(short) == _IDENTIFIER_LENGTH and _HEX.issuperset(short) and registry == DEFAULT_REGISTRY:
        raise refuse("64 hex digits are an image id, not a name")
    if repository != repository.lower() and is_repository(repository.lower()):
        lowered = text.replace(short, short.lower(), 1)
        raise refuse("the repository must be lower case", hint=f"use {lowered!r}")
    if not is_registry(registry):
        raise refuse(f"{registry!r} is not a registry host")
    if not is_repository(repository):
        raise refuse(f"{short!r} is not a repository name (letters, digits, and . _ __ - between them)")
    if len(repository) > NAME_LIMIT:
        raise refuse(f"the repository name is longer than {NAME_LIMIT} characters")
    if tag is not None and not is_tag(tag):
        raise refuse(f"{tag[:150]!r} is not a tag (at most 128 letters, digits, and . _ -)")
    if digest is not None:
        check_digest(digest, f"invalid reference {text[:300]!r}")
    return Reference(registry, repository, tag, digest)


# The grammar's rules. Not by regular expressions: loading `re` would take a tenth of the time of a short command.


def is_registry(text: str) -> bool:
    """Tell whether a text is host[:port] or [IPv6 address][:port]."""
    host, port = text, ""
    if not text.endswith("]") and ":" in text:
        host, _, port = text.rpartition(":")
        if not port or not _DIGITS.issuperset(port):
            return False
    if host.startswith("[") and host.endswith("]"):
        return len(host) > 2 and (_HEX | frozenset("ABCDEF:")).issuperset(host[1:-1])
    return all(map(_is_label, host.split(".")))


def _is_label(text: str) -> bool:
    return bool(text) and text[0] in _LETTERS and text[-1] in _LETTERS and (_LETTERS | {"-"}).issuperset(text)


def is_repository(text: str) -> bool:
    """Tell whether a text is components of lower-case letters and digits, with /, and . _ __ or -s inside them."""
    return all(map(_is_component, text.split("/")))


def _is_component(text: str) -> bool:
    if not text or text[0] not in _LOWER or text[-1] not in _LOWER:
        return False
    between = ""
    for letter in text:
        if letter not in _LOWER:
            between += letter
        elif between:
            if between not in (".", "_", "__") and between.strip("-"):
                return False
            between = ""
    return True


def is_tag(text: str) -> bool:
    """Tell whether a text is a tag: letters, digits and _, then . and - as well."""
    return 0 < len(text) <= _TAG_LIMIT and text[0] not in ".-" and (_LETTERS | frozenset("_.-")).issuperset(text)
