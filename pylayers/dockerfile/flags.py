"""The flags of instructions (`COPY --from=...`): which exist, and reading them as BuildKit does."""

from __future__ import annotations

from collections.abc import Mapping

from pylayers.dockerfile.suggest import suffix_suggestion
from pylayers.dockerfile.text import show
from pylayers.errors import InvalidInput
from pylayers.record import field, record

TEXT = "text"
TEXTS = "texts"  # may be repeated
SWITCH = "switch"

_TRANSFER = {"chown": TEXT, "chmod": TEXT, "link": SWITCH, "exclude": TEXTS}
KNOWN: Mapping[str, Mapping[str, str]] = {
    "FROM": {"platform": TEXT},
    "RUN": {"mount": TEXTS, "network": TEXT, "security": TEXT, "device": TEXTS},
    "COPY": {**_TRANSFER, "from": TEXT, "parents": SWITCH},
    "ADD": {**_TRANSFER, "keep-git-dir": SWITCH, "checksum": TEXT, "unpack": SWITCH},
    "HEALTHCHECK": {
        "interval": TEXT, "timeout": TEXT, "start-period": TEXT, "start-interval": TEXT, "retries": TEXT,
    },
}  # fmt: skip


@record(frozen=False)
class Flags:
    """The flags given to one instruction."""

    texts: dict[str, str] = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """Return the value; an empty one counts as not given."""
        return self.texts.get(name) or None


NONE = Flags()


def read_flags(instruction: str, given: tuple[str, ...]) -> Flags:
    """Read the flags of an instruction; raise InvalidInput for unknown, repeated or malformed ones."""
    if not given:
        return NONE
    known = KNOWN.get(instruction, {})
    flags = Flags()
    lists: dict[str, list[str]] = {}
    for flag in given:
        if flag == "--":
            break
        name, equals, value = flag[2:].partition("=")
        kind = known.get(name)
        if kind is None:
            raise InvalidInput(f"unknown flag: --{show(name)}{suffix_suggestion(name, known, '--')}")
        if name in flags.texts or name in flags.switches:
            raise InvalidInput(f"duplicate flag specified: --{name}")
        if kind == SWITCH:
            if equals and not value:
                raise InvalidInput(f"missing a value on flag: --{name}")
            if value.lower() not in {"", "true", "false"}:
                raise InvalidInput(f"expecting boolean value for flag --{name}, not: {show(value)}")
            flags.switches[name] = value.lower() != "false"
        elif not equals:
            raise InvalidInput(f"missing a value on flag: --{name}")
        elif kind == TEXT:
            flags.texts[name] = value
        else:
            lists.setdefault(name, []).append(value)
    flags.lists = {name: tuple(values) for name, values in lists.items()}
    return flags
