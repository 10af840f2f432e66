"""Users and groups of an image: --chown and USER by number or through its passwd and group."""

from __future__ import annotations

from pylayers.build.session import BuildSession
from pylayers.build.state import StageState
from pylayers.errors import InvalidInput, NotFound, SourceSpan

ACCOUNT_LIMIT_BYTES = 1 << 20


def find_account(session: BuildSession, state: StageState, text: str, span: SourceSpan | None) -> tuple[int, int]:
    """Resolve USER[:GROUP] as BuildKit does: an unknown user is 0:0, an unknown group the user's own.

    Raises InvalidInput for a name where there is no image that could know it.
    """
    user, colon, group = text.partition(":")
    uid = read_id(user or "0")
    if uid is not None:
        gid = uid
    else:
        check_has_files(state, user, span)
        uid, gid = find_user(session, state, user)
    if colon:
        number = read_id(group)
        if number is None:
            check_has_files(state, group, span)
            number = find_group(session, state, group) if group else 0
        gid = gid if number is None else number
    return uid, gid


def read_id(text: str) -> int | None:
    """Return an account given by number, None for a name."""
    return int(text) if text.isascii() and text.isdigit() and int(text) < 1 << 32 else None


def check_has_files(state: StageState, name: str, span: SourceSpan | None) -> None:
    """Refuse a name on scratch."""
    if not state.diff_ids:
        raise InvalidInput(
            f"{name!r} cannot be looked up: the stage is empty (scratch), it has no /etc/passwd",
            hint="give the number",
            span=span,
        )


def find_user(session: BuildSession, state: StageState, name: str) -> tuple[int, int]:
    """Return the uid and gid of passwd's first line for a name; 0:0 where there is none."""
    for fields in read_lines(session, state, b"etc/passwd"):
        if fields[0] == name and len(fields) > 3 and fields[2].isdigit() and fields[3].isdigit():
            return int(fields[2]), int(fields[3])
    return 0, 0


def find_group(session: BuildSession, state: StageState, name: str) -> int | None:
    """Return the gid of a group's first line, or None."""
    for fields in read_lines(session, state, b"etc/group"):
        if fields[0] == name and len(fields) > 2 and fields[2].isdigit():
            return int(fields[2])
    return None


def read_lines(session: BuildSession, state: StageState, path: bytes) -> list[list[str]]:
    """Return the fields of each line of passwd or group; none where the image hasn't the file."""
    from pylayers.diff.resolve import read_file

    layers = session.trees.layers(state.diff_ids)
    try:
        content = read_file(layers, path, ACCOUNT_LIMIT_BYTES, table=session.trees.merged(state.diff_ids))
    except NotFound:
        return []
    return [line.split(":") for line in content.decode(errors="surrogateescape").splitlines()]
