"""Image references in docker's grammar: [registry/]repository[:tag][@digest]."""

from __future__ import annotations

import re

from pylayers.errors import InvalidInput
from pylayers.oci.digest import check_digest
from pylayers.record import field, record, replace

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_REGISTRY = "index.docker.io"
_OFFICIAL = "library/"
NAME_LIMIT = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_IDENTIFIER = r"[a-f0-9]{64}"


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
    if re.fullmatch(_IDENTIFIER, short) and registry == DEFAULT_REGISTRY:
        raise refuse("64 hex digits are an image id, not a name")
    if repository != repository.lower() and re.fullmatch(_REPOSITORY, repository.lower()):
        lowered = text.replace(short, short.lower(), 1)
        raise refuse("the repository must be lower case", hint=f"use {lowered!r}")
    if not re.fullmatch(_REGISTRY, registry):
        raise refuse(f"{registry!r} is not a registry host")
    if not re.fullmatch(_REPOSITORY, repository):
        raise refuse(f"{short!r} is not a repository name (letters, digits, and . _ __ - between them)")
    if len(repository) > NAME_LIMIT:
        raise refuse(f"the repository name is longer than {NAME_LIMIT} characters")
    if tag is not None and not re.fullmatch(_TAG, tag):
        raise refuse(f"{tag[:150]!r} is not a tag (at most 128 letters, digits, and . _ -)")
    if digest is not None:
        check_digest(digest, f"invalid reference {text[:300]!r}")
    return Reference(registry, repository, tag, digest)
