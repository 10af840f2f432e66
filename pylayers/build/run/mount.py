"""Read `RUN --mount` and `RUN --device`: comma-separated options into records, by BuildKit's rules and in its words."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence

from pylayers.dockerfile.suggest import suffix_suggestion
from pylayers.dockerfile.text import quote, show
from pylayers.errors import InvalidInput, SourceSpan
from pylayers.record import record

BIND, CACHE, TMPFS, SECRET, SSH = TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARED, PRIVATE, LOCKED = SHARINGS = ("shared", "private", "locked")
KEYS = (
    "type", "from", "source", "target", "readonly", "id", "sharing", "required", "size", "mode", "uid", "gid", "env",
    "src", "dst", "destination", "ro", "rw", "readwrite",
)  # fmt: skip
ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}
TRUE_WORDS = frozenset(("1", "t", "T", "TRUE", "true", "True"))
FALSE_WORDS = frozenset(("0", "f", "F", "FALSE", "false", "False"))
ID_LIMIT = 1 << 32
VARIABLE = re.compile(r"\$.")

Expand = Callable[[str], str]


@record(kw_only=True)
class RunMount:
    """Say what one --mount asks for; `from_name` is a stage, an image, a named context or "" (the build context)."""

    type: str = BIND
    from_name: str = ""
    source: str = ""
    target: str = ""
    readonly: bool = True
    size_bytes: int = 0
    id: str = ""
    sharing: str = ""
    required: bool = False
    env: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None

    def describe(self) -> tuple[str, ...]:
        """Return every option as text, for keys: two mounts with equal texts do the same."""
        return (
            self.type, self.from_name, self.source, self.target, str(self.readonly), str(self.size_bytes), self.id,
            self.sharing, str(self.required), repr(self.env), repr(self.mode), repr(self.uid), repr(self.gid),
        )  # fmt: skip


def split_fields(text: str, what: str = "mounts") -> list[str]:
    """Split one line of comma-separated values as Go's csv reader does. Raises InvalidInput."""
    if '"' not in text and "\n" not in text and text:
        return text.split(",")
    line = text.split("\n", 1)[0]
    if not line:
        raise InvalidInput(f"failed to parse csv {what}: EOF")
    fields: list[str] = []
    position = 0
    while True:
        if line[position : position + 1] == '"':
            field, position = _read_quoted(line, position + 1, what)
        else:
            end = line.find(",", position)
            end = len(line) if end < 0 else end
            field, position = line[position:end], end
            if '"' in field:
                raise InvalidInput(f'failed to parse csv {what}: bare " in non-quoted field {quote(field)}')
        fields.append(field)
        if position >= len(line):
            return fields
        position += 1


def _read_quoted(line: str, position: int, what: str) -> tuple[str, int]:
    """Return the field whose opening quote was just passed, and the place of the comma after it."""
    pieces: list[str] = []
    while True:
        end = line.find('"', position)
        if end < 0:
            break
        pieces.append(line[position:end])
        position = end + 1
        if line[position : position + 1] == '"':
            pieces.append('"')
            position += 1
        elif line[position : position + 1] in ("", ","):
            return "".join(pieces), position
        else:
            break
    raise InvalidInput(f'failed to parse csv {what}: extraneous or missing " in quoted-field of {quote(line)}')


def source_names(mounts: Sequence[str], span: SourceSpan) -> list[str]:
    """Return what the `from=` of mounts name, as written; variables aren't allowed there. Raises InvalidInput."""
    found: list[str] = []
    for text in mounts:
        try:
            options = [field.partition("=") for field in split_fields(text)]
        except InvalidInput as error:
            raise InvalidInput(error.message, span=span) from None
        for key, _, value in options:
            if key.lower() != "from":
                continue
            if VARIABLE.search(value):
                raise InvalidInput(
                    "'from' doesn't support variable expansion, define alias stage instead",
                    hint=f"add a stage `FROM {value} AS NAME` and write from=NAME",
                    span=span,
                )
            if value:
                found.append(value)
    return found


def parse_mount(text: str, expand: Expand, working_dir: str = "/") -> RunMount:
    """Read one --mount value; variables are expanded in the values, a relative target is below working_dir.

    Raises InvalidInput.
    """
    given: dict[str, object] = {"type": BIND}
    for field in split_fields(text):
        written, equals, value = field.partition("=")
        key = written.lower()
        if equals:
            value = expand(value)
        elif key not in ("readonly", "ro", "readwrite", "rw", "required"):
            raise InvalidInput(f"invalid field '{show(field)}' must be a key=value pair")
        _read_option(given, key, value, field, bare=not equals)
    kind = given["type"]
    given.setdefault("readonly", kind not in (CACHE, TMPFS))
    mount = RunMount(**given)  # type: ignore[arg-type]
    _check(mount)
    return _place(mount, working_dir)


def _read_option(given: dict[str, object], key: str, value: str, field: str, *, bare: bool) -> None:
    name = ALIASES.get(key, key)
    kind = given["type"]
    if name == "type":
        if value.lower() not in TYPES:
            raise InvalidInput(f"unsupported mount type {quote(value)}{suffix_suggestion(value, TYPES)}")
        given["type"] = value.lower()
    elif name in ("readonly", "readwrite"):
        given["readonly"] = (bare or _read_bool(key, value)) == (name == "readonly")
    elif name in ("required", "size") and kind not in ((SECRET, SSH) if name == "required" else (TMPFS,)):
        raise InvalidInput(f"unexpected key '{name}' for mount type '{kind}'")
    elif name == "required":
        given["required"] = bare or _read_bool(key, value)
    elif name == "size":
        given["size_bytes"] = _read_size(value)
    elif name == "sharing":
        if value.lower() not in SHARINGS:
            raise InvalidInput(f"unsupported sharing value {quote(value)}{suffix_suggestion(value, SHARINGS)}")
        given["sharing"] = value.lower()
    elif name in ("mode", "uid", "gid"):
        given[name] = _read_number(name, value)
    elif name == "from":
        given["from_name"] = value
    elif name in ("source", "target", "id", "env"):
        given[name] = value
    else:
        raise InvalidInput(f"unexpected key '{show(key)}' in '{show(field)}'{suffix_suggestion(key, KEYS)}")


def _read_bool(key: str, value: str) -> bool:
    if value not in TRUE_WORDS | FALSE_WORDS:
        raise InvalidInput(f"invalid value for {key}: {show(value)}", hint="write true or false")
    return value in TRUE_WORDS


def _read_size(value: str) -> int:
    from pylayers.volume.parse import parse_size

    try:
        return parse_size(value)
    except InvalidInput:
        raise InvalidInput(f"invalid value for size: {show(value)}", hint="write a size such as 64m") from None


def _read_number(name: str, value: str) -> int:
    base = 8 if name == "mode" else 10
    if value and len(value) <= 32 and all(digit in "0123456789"[:base] for digit in value):
        number = int(value, base)
        if number < ID_LIMIT:
            return number
    raise InvalidInput(f"invalid value {show(value)} for {name}")


def _check(mount: RunMount) -> None:
    kind = mount.type
    if kind in (BIND, TMPFS):
        for name in ("mode", "uid", "gid"):
            if getattr(mount, name) is not None:
                raise InvalidInput(f'{name} not allowed for "{kind}" type mounts')
    if kind == SECRET:
        if mount.from_name:
            raise InvalidInput("secret mount should not have a from")
        if mount.sharing:
            raise InvalidInput("secret mount should not define sharing")
        if not (mount.source or mount.target or mount.id):
            raise InvalidInput("invalid secret mount. one of source, target required", hint="write id=NAME")
        if mount.source and mount.id:
            raise InvalidInput("both source and id can't be set")
    if mount.sharing and kind != CACHE:
        raise InvalidInput(f"invalid cache sharing set for {kind} mount")
    if kind == SSH and mount.source:
        raise InvalidInput("ssh does not support source", hint="write id=NAME")


def _place(mount: RunMount, working_dir: str) -> RunMount:
    """Fill in what follows from other options: the id of a secret and the absolute target."""
    from pylayers.record import replace

    if mount.type == SECRET:
        mount = replace(mount, id=mount.id or mount.source or posixpath.basename(mount.target.rstrip("/")))
        if not mount.target and mount.env is None:
            mount = replace(mount, target="/run/secrets/" + posixpath.basename(mount.id.rstrip("/")))
    elif mount.type == SSH:
        return replace(mount, id=mount.id or "default")
    if not mount.target and mount.type == SECRET:
        return mount
    target = "/" + posixpath.normpath(posixpath.join("/", working_dir, mount.target)).lstrip("/")
    if target == "/":
        raise InvalidInput('invalid mount target "/"', hint="write target=/SOME/PATH")
    if mount.type == CACHE and not mount.id:
        mount = replace(mount, id=target)
    return replace(mount, target=target)


@record
class RunDevice:
    """Name a device that a RUN asks for; one that isn't required may be missing."""

    name: str
    required: bool = False


def parse_device(text: str, expand: Expand) -> RunDevice:
    """Read one --device value: [name=]NAME[,required]. Raises InvalidInput."""
    name, required = "", False
    for field in split_fields(text, "devices"):
        key, equals, value = field.partition("=")
        if key.lower() == "required":
            required = not equals or _read_bool("required", expand(value))
        elif key.lower() == "name" and equals:
            name = expand(value)
        elif not name:
            name = expand(field)  # a CDI name such as vendor.com/class=device has an equals sign of its own
        else:
            raise InvalidInput(f"unexpected key '{show(key)}' in '{show(field)}'")
    if not name:
        raise InvalidInput("device name is empty", hint="write --device=/dev/NAME or --device=VENDOR/CLASS=NAME")
    return RunDevice(name, required)
