"""What --exclude and --parents choose below a source: patterns as in an ignore file, relative to the source."""

from __future__ import annotations

from collections.abc import Sequence

from pylayers.dockerfile.ignore import IgnoreRules, clean, parse_rule
from pylayers.errors import InvalidInput
from pylayers.record import record


@record
class PathFilter:
    """Choose paths: those that `include` matches (all for None), less those that `exclude` matches."""

    name: str  # equal for equal filters: part of cache keys
    include: IgnoreRules | None = None
    exclude: IgnoreRules | None = None

    @property
    def enters(self) -> bool:
        """Tell whether directories that aren't taken may have to be entered for what is in them."""
        return self.include is not None or (self.exclude is not None and self.exclude.has_exceptions)

    def takes(self, path: str, is_directory: bool) -> bool:
        """Tell whether a path itself is copied."""
        if self.include is not None and not self.include.excluded(path, is_directory):
            return False
        return self.exclude is None or not self.exclude.excluded(path, is_directory)

    def may_contain(self, path: str) -> bool:
        """Tell whether something in a directory that isn't taken may be."""
        if self.exclude is not None and not self.exclude.may_contain(path):
            return False
        include = self.include
        return include is None or include.excluded(path, True) or any(r.may_match_beneath(path) for r in include.rules)


def make_filter(include: str, exclude: Sequence[str]) -> PathFilter | None:
    """Return the filter for a --parents pattern (empty: all) and --exclude patterns, None when all is taken."""
    if not include and not exclude:
        return None
    name = repr((include, tuple(exclude)))
    taken = None if not include else read_rules((include,), "includepatterns")
    return PathFilter(name, taken, read_rules(exclude, "excludepatterns") if exclude else None)


def split_pivot(source: str) -> tuple[str, str]:
    """Split a --parents source at its `/./` into the directory to copy from and the pattern of what to copy."""
    head, pivot, tail = source.partition("/./")
    if not pivot:
        head, tail = "", source
    return head or "/", clean("/" + tail).lstrip("/")


def read_rules(patterns: Sequence[str], kind: str) -> IgnoreRules:
    """Read patterns; a rooted one matches nothing, paths being relative. Raises InvalidInput in BuildKit's words."""
    try:
        rules = [parse_rule(pattern) for pattern in patterns if pattern.strip()]
        kept = [
            rule
            for rule, pattern in zip(rules, (p for p in patterns if p.strip()), strict=True)
            if not pattern.removeprefix("!").strip().startswith("/")
        ]
    except InvalidInput as error:
        raise InvalidInput(f"invalid {kind}: [{' '.join(patterns)}]: {error.message}", hint=error.hint) from None
    return IgnoreRules(tuple(kept))
