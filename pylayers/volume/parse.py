"""Parse `-v` and `--mount` as docker does, with docker's words in the errors."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from pylayers.errors import InvalidInput, NotFound, translate_os_error
from pylayers.record import record

NAME_PATTERN = r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z"
PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_SIZE_PATTERN = r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?\Z"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


@record(kw_only=True)
class MountRequest:
    """Say what the user asked to be mounted.

    `source` is a volume name, an absolute host path, or "" (anonymous volume, tmpfs).
    """

    type: str  # "bind" | "volume" | "tmpfs"
    target: str
    source: str = ""
    readonly: bool = False
    propagation: str = ""
    nocopy: bool = False
    relabel: str = ""  # "z" (shared) or "Z" (private) on SELinux machines
    recursive: bool = True
    create_source: bool = False  # -v makes a missing host directory, --mount does not
    tmpfs_size_bytes: int | None = None
    tmpfs_mode: int | None = None

    @property
    def anonymous(self) -> bool:
        """Tell whether a volume with a made-up name is wanted."""
        return self.type == "volume" and not self.source


def parse_size(text: str) -> int:
    """Read "64m", "1.5g", "1024" or "1024b" as bytes. Raises InvalidInput."""
    match = re.match(_SIZE_PATTERN, text.strip(), re.IGNORECASE)
    if not match:
        raise InvalidInput(f"invalid size: '{text}'")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def clean_target(target: str, given: str) -> str:
    """Check a path inside the container and return it normalised. Raises InvalidInput."""
    if not target.startswith("/"):
        raise InvalidInput(f"invalid mount path: '{target}' mount path must be absolute")
    cleaned = "/" + posixpath.normpath(target).lstrip("/")
    if cleaned == "/":
        raise InvalidInput(f"invalid volume specification: '{given}': destination can't be '/'")
    return cleaned


def parse_volume(given: str, *, base: Path | None = None) -> MountRequest:
    """Parse one `-v` value; a relative host path is taken from base (default: the working directory).

    Raises InvalidInput.
    """
    parts = given.split(":")
    if not given or len(parts) > 3 or "" in parts:
        raise InvalidInput(f"invalid volume specification: '{given}'")
    if len(parts) == 1:
        return MountRequest(type="volume", target=clean_target(parts[0], given))
    source, target = parts[0], clean_target(parts[1], given)
    options = _volume_options(parts[2] if len(parts) == 3 else "", given)
    if source in (".", "..") or source.startswith(("./", "../")):
        source = os.path.normpath(os.path.join(base or Path.cwd(), source))
    if source.startswith("/"):
        if options.pop("nocopy", False):
            raise InvalidInput(
                f"invalid mode: nocopy: '{given}' is a bind mount, only a volume is filled from the image"
            )
        return MountRequest(
            type="bind",
            source=posixpath.normpath(source),
            target=target,
            create_source=True,
            **options,  # type: ignore[arg-type]
        )
    check_name(source, given)
    if options.get("propagation"):
        raise InvalidInput(f"invalid volume specification: '{given}': bind propagation needs a host path")
    return MountRequest(type="volume", source=source, target=target, **options)  # type: ignore[arg-type]


def _volume_options(text: str, given: str) -> dict[str, object]:
    options: dict[str, object] = {}
    seen_mode = ""
    for option in text.split(",") if text else ():
        if option in ("ro", "rw"):
            if seen_mode:
                raise InvalidInput(f"invalid mode: {text}")
            seen_mode = option
            options["readonly"] = option == "ro"
        elif option in ("z", "Z") and "relabel" not in options:
            options["relabel"] = option
        elif option in PROPAGATIONS and "propagation" not in options:
            options["propagation"] = option
        elif option in ("bind", "rbind"):
            options["recursive"] = option == "rbind"
        elif option == "nocopy":
            options["nocopy"] = True
        elif option not in ("consistent", "cached", "delegated"):  # Docker Desktop's hints, without effect on Linux
            raise InvalidInput(f"invalid mode: {text}", hint=f"in '{given}'")
    return options


def check_name(name: str, given: str = "") -> None:
    """Check a volume's name against docker's rule. Raises InvalidInput."""
    if not re.match(NAME_PATTERN, name):
        raise InvalidInput(
            f'"{name}" includes invalid characters for a local volume name, '
            'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed',
            hint="If you intended to pass a host directory, use absolute path",
        )


_ALIASES = {
    "src": "source", "dst": "target", "destination": "target", "ro": "readonly",
}  # fmt: skip
_FLAGS = frozenset({"readonly", "volume-nocopy", "bind-nonrecursive"})
_KEYS = _FLAGS | {
    "type", "source", "target", "bind-propagation", "tmpfs-size", "tmpfs-mode", "consistency", "bind-recursive",
}  # fmt: skip


def parse_mount(given: str) -> MountRequest:
    """Parse one `--mount` value (comma separated, CSV quoting). Raises InvalidInput."""
    fields = _mount_fields(given)
    kind = fields.get("type", "volume")
    if kind not in ("bind", "volume", "tmpfs"):
        raise InvalidInput(f"invalid mount type '{kind}': pylayers mounts bind, volume and tmpfs")
    for key in fields:
        owner = key.partition("-")[0]
        if owner in ("bind", "volume", "tmpfs") and owner != kind:
            raise InvalidInput(f"cannot mix '{owner}-*' options with mount type '{kind}'")
    if not fields.get("target"):
        raise InvalidInput("target is required")
    target = clean_target(fields["target"], given)
    source = fields.get("source", "")
    readonly = _truth("readonly", fields.get("readonly", "false"))
    if kind == "tmpfs":
        return _tmpfs(fields, source, target, readonly)
    if kind == "volume":
        if source:
            check_name(source, given)
        nocopy = _truth("volume-nocopy", fields.get("volume-nocopy", "false"))
        return MountRequest(type="volume", source=source, target=target, readonly=readonly, nocopy=nocopy)
    if not source:
        raise InvalidInput('invalid mount config for type "bind": field Source must not be empty')
    if source in (".", "..") or source.startswith(("./", "../")):
        source = os.path.abspath(source)
    if not source.startswith("/"):
        raise InvalidInput(
            f"invalid mount config for type \"bind\": invalid mount path: '{source}' mount path must be absolute"
        )
    propagation = fields.get("bind-propagation", "")
    if propagation and propagation not in PROPAGATIONS:
        raise InvalidInput(f"invalid mount config for type \"bind\": invalid propagation: '{propagation}'")
    return MountRequest(
        type="bind", source=posixpath.normpath(source), target=target, readonly=readonly, propagation=propagation,
        recursive=_recursive(fields),
    )  # fmt: skip


def _tmpfs(fields: dict[str, str], source: str, target: str, readonly: bool) -> MountRequest:
    if source:
        raise InvalidInput('invalid mount config for type "tmpfs": field Source must not be specified')
    mode = None
    if "tmpfs-mode" in fields:
        try:
            mode = int(fields["tmpfs-mode"], 8)
        except ValueError:
            raise InvalidInput(f"invalid value for tmpfs-mode: {fields['tmpfs-mode']}") from None
    size = parse_size(fields["tmpfs-size"]) if "tmpfs-size" in fields else None
    return MountRequest(type="tmpfs", target=target, readonly=readonly, tmpfs_size_bytes=size, tmpfs_mode=mode)


def _recursive(fields: dict[str, str]) -> bool:
    if "bind-nonrecursive" in fields:
        return not _truth("bind-nonrecursive", fields["bind-nonrecursive"])
    choice = fields.get("bind-recursive", "enabled")
    if choice not in ("enabled", "disabled", "writable"):
        raise InvalidInput(f'invalid value for bind-recursive: {choice} (must be "enabled", "disabled" or "writable")')
    return choice != "disabled"


def _mount_fields(given: str) -> dict[str, str]:
    import csv

    try:
        row = next(csv.reader([given], strict=True), [])
    except csv.Error as error:
        raise InvalidInput(f'invalid argument "{given}" for "--mount" flag: {error}') from None
    if not row:
        raise InvalidInput("value is empty")
    fields: dict[str, str] = {}
    for field in row:
        key, equals, value = field.partition("=")
        key = _ALIASES.get(key.strip().lower(), key.strip().lower())
        if key not in _KEYS:
            raise InvalidInput(f"unexpected key '{key}' in '{field}'")
        if not equals:
            if key not in _FLAGS:
                raise InvalidInput(f"invalid field '{field}' must be a key=value pair")
            value = "true"
        fields[key] = value
    return fields


def _truth(key: str, value: str) -> bool:
    if value.lower() in ("1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise InvalidInput(f"invalid value for {key}: {value}")


def parse_tmpfs(given: str) -> MountRequest:
    """Parse one `--tmpfs` value: /path[:size=64m,mode=1777,ro]. Raises InvalidInput."""
    target, _, text = given.partition(":")
    fields: dict[str, str] = {}
    readonly = False
    for option in text.split(",") if text else ():
        key, equals, value = option.partition("=")
        if key in ("size", "mode") and equals:
            fields[f"tmpfs-{key}"] = value
        elif option in ("ro", "rw"):
            readonly = option == "ro"
        elif option not in ("noexec", "nosuid", "nodev"):  # always set
            raise InvalidInput(f"invalid tmpfs option '{option}' in '{given}'")
    return _tmpfs(fields, "", clean_target(target, given), readonly)


def check_duplicates(requests: Iterable[MountRequest]) -> None:
    """Refuse two mounts on one place. Raises InvalidInput."""
    seen: set[str] = set()
    for request in requests:
        if request.target in seen:
            raise InvalidInput(f"Duplicate mount point: {request.target}")
        seen.add(request.target)


def prepare_bind(request: MountRequest) -> None:
    """Make the missing host directory of a `-v` bind, or refuse a missing source of `--mount`, as docker does.

    Raises NotFound, or the translated OSError.
    """
    if request.type != "bind" or os.path.lexists(request.source):
        return
    if not request.create_source:
        raise NotFound(
            f'invalid mount config for type "bind": bind source path does not exist: {request.source}',
            hint="create it first, or use -v, which creates a missing directory",
        )
    try:
        os.makedirs(request.source, mode=0o755, exist_ok=True)
    except OSError as error:
        raise translate_os_error(error, f"error while creating mount source path '{request.source}'") from error
