"""The whole error hierarchy: exit codes and hints.

Every error that a user can meet is a PylayersError. `exit_code` is what the CLI leaves with,
`hint` tells the next command where one exists. The codes are listed in README.md.
"""

from __future__ import annotations

import errno

from pylayers.record import record


@record
class SourceSpan:
    """Name a place in an input file; lines count from 1, `text` is the source line."""

    file: str
    line: int
    end_line: int | None = None
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class PylayersError(Exception):
    """Base of every error that pylayers raises on purpose."""

    exit_code = 1
    excerpt = ""  # source lines around the place, for showing below the message

    def __init__(self, message: str, *, hint: str | None = None, span: SourceSpan | None = None) -> None:
        super().__init__(message if span is None else f"{span}: {message}")
        self.hint = hint
        self.span = span

    @property
    def message(self) -> str:
        """Return what went wrong, led by file:line where there is one."""
        return str(self)


class InvalidInput(PylayersError):
    """What was given is malformed."""

    exit_code = 2


class NotFound(PylayersError):
    """A named thing does not exist."""

    exit_code = 3


class AlreadyExists(PylayersError):
    """A name is taken."""

    exit_code = 4


class Conflict(PylayersError):
    """The thing is in use, or another process holds it."""

    exit_code = 5


class IntegrityError(PylayersError):
    """Stored or received bytes are not what their digest or format says."""

    exit_code = 6

    def __init__(self, message: str, *, hint: str | None = None, offset: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.offset = offset


class Unsupported(PylayersError):
    """This machine, kernel or tool cannot do it; the message says why."""

    exit_code = 7


class DriverError(PylayersError):
    """A storage driver cannot work, or failed."""

    exit_code = 8


class RegistryError(PylayersError):
    """A registry refused or broke off."""

    exit_code = 9


class BuildError(PylayersError):
    """A build step failed: `exit_status` of its command, `step` as written, `log_tail` its last lines."""

    exit_code = 10

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        span: SourceSpan | None = None,
        step: str = "",
        exit_status: int | None = None,
        log_tail: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint, span=span)
        self.step = step
        self.exit_status = exit_status
        self.log_tail = log_tail


class NoSpace(PylayersError):
    """The file system is full, or a quota is reached."""

    exit_code = 11


class PermissionDenied(PylayersError):
    """The operation needs rights that this process lacks."""

    exit_code = 12


class RuntimeMissing(Unsupported):
    """No OCI runtime works on this machine."""

    exit_code = 13


class ContainerError(PylayersError):
    """The container could not be created or started (docker's 125, 126 and 127)."""

    exit_code = 125

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = 125) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


OS_ERRORS: tuple[tuple[type[PylayersError], tuple[int, ...], str | None], ...] = (
    (NoSpace, (errno.ENOSPC, errno.EDQUOT), "free space with: pylayers system prune"),
    (PermissionDenied, (errno.EACCES, errno.EPERM), "run as root, or choose a root you own with --root"),
    (PermissionDenied, (errno.EROFS,), "mount it read-write, or choose another place (for the root: --root)"),
    (NotFound, (errno.ENOENT, errno.ENOTDIR), None),
    (InvalidInput, (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG), None),
    (AlreadyExists, (errno.EEXIST,), None),
    (Conflict, (errno.EBUSY, errno.ETXTBSY), None),
    (Unsupported, (errno.ENOSYS, errno.EOPNOTSUPP), None),
)


def translate_os_error(error: OSError, doing: str) -> PylayersError:
    """Turn an OSError into the named error a user should see, keeping what was being done and the path."""
    where = f" ({error.filename!s})" if error.filename else ""
    message = f"{doing}: {error.strerror or error}{where}"
    kind, hint = PylayersError, None
    for candidate, codes, advice in OS_ERRORS:
        if error.errno in codes:
            kind, hint = candidate, advice
    return kind(message, hint=hint)
