"""Find the user a process runs as, by the image's own /etc/passwd and /etc/group."""

from __future__ import annotations

from collections.abc import Iterator

from pylayers.errors import ContainerError, translate_os_error
from pylayers.record import record
from pylayers.volume.rootpath import read_beneath

FILE_LIMIT_BYTES = 16 << 20
ID_LIMIT = (1 << 31) - 1  # docker's own limit


@record
class User:
    """Name the numeric identity of a process."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def resolve_user(root_fd: int, given: str) -> User:
    """Resolve "", "name", "uid", "name:group", "uid:gid" inside a root file system, by docker's rules.

    A number needs no entry. Without an explicit group the user's own and additional groups count.
    Raises ContainerError.
    """
    name, colon, group = given.partition(":")
    try:
        passwd = read_beneath(root_fd, "etc/passwd", FILE_LIMIT_BYTES) or b""
        # The group file can be large and matters only for a name or a user with an entry.
        uid, gid, home, login = _find_user(passwd, name or "0")
        if colon and group:
            groups: tuple[int, ...] = ()
            gid = _find_group(read_beneath(root_fd, "etc/group", FILE_LIMIT_BYTES) or b"", group)
        elif login:
            groups = _additional(read_beneath(root_fd, "etc/group", FILE_LIMIT_BYTES) or b"", login)
        else:
            groups = ()
    except OSError as error:
        raise translate_os_error(error, f"resolve user {given!r}") from error
    return User(uid, gid, groups, home or "/")


def _find_user(passwd: bytes, name: str) -> tuple[int, int, str, str]:
    wanted = _number(name, "uid")
    for fields in _records(passwd, 7):
        uid, gid = _field(fields[2]), _field(fields[3])
        if uid is not None and gid is not None and (fields[0] == name or uid == wanted):
            return uid, gid, fields[5], fields[0]
    if wanted is None:
        raise ContainerError(
            f"unable to find user {name}: no matching entries in passwd file",
            hint="name one of the image's /etc/passwd, or give numbers (UID:GID)",
        )
    return wanted, 0, "/", ""


def _find_group(content: bytes, group: str) -> int:
    wanted = _number(group, "gid")
    for fields in _records(content, 3):
        gid = _field(fields[2])
        if gid is not None and (fields[0] == group or gid == wanted):
            return gid
    if wanted is None:
        raise ContainerError(f"unable to find group {group}: no matching entries in group file")
    return wanted


def _additional(content: bytes, login: str) -> tuple[int, ...]:
    found = []
    for fields in _records(content, 4):
        gid = _field(fields[2])
        if gid is not None and login in fields[3].split(","):
            found.append(gid)
    return tuple(found)


def _records(content: bytes, least_fields: int) -> Iterator[list[str]]:
    for line in content.decode(errors="surrogateescape").splitlines():
        fields = line.strip().split(":")
        if len(fields) >= least_fields and not line.startswith("#"):
            yield fields


def _field(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and int(text) <= 0xFFFFFFFF else None


def _number(text: str, kind: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    if int(text) > ID_LIMIT:
        raise ContainerError(f"{kind}s and gids must be in range 0-{ID_LIMIT}: {text}")
    return int(text)
