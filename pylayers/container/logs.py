"""Write and read container.log: docker's json-file lines {"log", "stream", "time"}."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from pylayers.container.record import LOG, NANOSECONDS, RUNNING, load_state, timestamp
from pylayers.errors import InvalidInput, NotFound
from pylayers.jsontext import dump, load
from pylayers.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

LINE_LIMIT_BYTES = 16 << 10  # a longer line is cut into several records, as docker does
BLOCK_BYTES = 64 << 10
POLL_SECONDS = 0.05
_DURATION = r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?\Z"
_RFC3339 = (
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?(?:([Zz])|([+-])(\d\d):?(\d\d))?\Z"
)


@record
class LogRecord:
    """Hold one record: text (with its newline, if it had one), "stdout" or "stderr", time as RFC 3339."""

    text: str
    stream: str
    time: str


class LogWriter:
    """Cut streams into lines and append them to a log file."""

    def __init__(self, path: StrPath) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._partial: dict[str, bytes] = {}

    def write(self, stream: str, content: bytes) -> None:
        """Append what a stream produced; an unfinished line waits for its end, or for `close`."""
        content = self._partial.pop(stream, b"") + content
        *lines, rest = content.split(b"\n")
        records = [part for line in lines for part in _cut(line + b"\n")]
        *full, rest = _cut(rest) or [b""]
        if rest:
            self._partial[stream] = rest
        self._append(stream, records + full)

    def _append(self, stream: str, records: list[bytes]) -> None:
        if not records:
            return
        now = timestamp()
        lines = (
            dump({"log": text.decode(errors="replace"), "stream": stream, "time": now}, ensure_ascii=False)
            for text in records
        )
        content = "".join(line + "\n" for line in lines).encode(errors="replace")
        while content:
            content = content[os.write(self._descriptor, content) :]

    def close(self) -> None:
        """Write unfinished lines and close the file."""
        for stream, rest in sorted(self._partial.items()):
            self._append(stream, [rest])
        self._partial.clear()
        os.close(self._descriptor)


def _cut(line: bytes) -> list[bytes]:
    return [line[at : at + LINE_LIMIT_BYTES] for at in range(0, len(line), LINE_LIMIT_BYTES)]


def read_logs(
    directory: StrPath,
    *,
    follow: bool = False,
    tail: int | None = None,
    since_ns: int | None = None,
    until_ns: int | None = None,
) -> Iterator[LogRecord]:
    """Yield a container's log records; follow=True waits for more until the container has ended.

    Raises NotFound. A damaged or half-written line is left out.
    """
    path = f"{directory}/{LOG}"
    try:
        file = open(path, "rb")  # noqa: SIM115
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no such container: {os.path.basename(directory)[:12]}", hint="pylayers ps --all") from None
    with file:
        if tail is not None:
            file.seek(_tail_offset(file.fileno(), tail))
        rest = b""
        while True:
            # Look at the state first: what was written before the end is then certainly in what is read next.
            running = follow and _running(directory)
            while block := file.read(BLOCK_BYTES):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    record = _parse(line)
                    if record is None or not _within(record, since_ns, until_ns):
                        continue
                    yield record
            if not running:
                return
            time.sleep(POLL_SECONDS)


def _running(directory: StrPath) -> bool:
    try:
        return load_state(directory).status == RUNNING
    except NotFound:
        return False


def _within(record: LogRecord, since_ns: int | None, until_ns: int | None) -> bool:
    if since_ns is not None and record.time < timestamp(since_ns):
        return False
    return until_ns is None or record.time <= timestamp(until_ns)


def _parse(line: bytes) -> LogRecord | None:
    try:
        values = load(line)
        return LogRecord(values["log"], values["stream"], values["time"])
    except (ValueError, KeyError, TypeError):
        return None


def _tail_offset(descriptor: int, lines: int) -> int:
    """Find where the last n lines begin, reading backwards in blocks."""
    end = os.fstat(descriptor).st_size
    if lines <= 0:
        return end
    at, wanted = end, lines + 1  # the last line's own newline comes first
    while at > 0:
        start = max(0, at - BLOCK_BYTES)
        block = os.pread(descriptor, at - start, start)
        found = block.count(b"\n")
        if found >= wanted:
            place = len(block)
            for _ in range(wanted):
                place = block.rindex(b"\n", 0, place)
            return start + place + 1
        wanted -= found
        at = start
    return 0


def parse_time(given: str, *, now_ns: int | None = None) -> int:
    """Read a --since or --until value as nanoseconds after 1970.

    Given as seconds after 1970, RFC 3339 (local time without a zone), or how long ago ("1h30m").

    Raises InvalidInput.
    """
    import calendar
    import re

    if re.fullmatch(r"\d+(\.\d{1,9})?", given):
        whole, _, fraction = given.partition(".")
        return int(whole) * NANOSECONDS + int(fraction.ljust(9, "0"))
    match = re.match(_DURATION, given)
    if given and match:
        days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
        ago = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        return (time.time_ns() if now_ns is None else now_ns) - int(ago * NANOSECONDS)
    match = re.match(_RFC3339, given)
    if match is None:
        raise InvalidInput(f"invalid time: {given!r}", hint="give 10m, 2026-01-02T15:04:05Z or seconds after 1970")
    day, minute, second, fraction, zulu, sign, zone_hours, zone_minutes = match.groups()
    try:
        fields = time.strptime(f"{day} {minute or '00:00'}:{second or '00'}", "%Y-%m-%d %H:%M:%S")
    except ValueError as error:
        raise InvalidInput(f"invalid time: {given!r}: {error}") from None
    if zulu or sign:
        zone = (int(zone_hours) * 60 + int(zone_minutes)) * 60 if sign else 0
        epoch = calendar.timegm(fields) - (zone if sign != "-" else -zone)
    else:
        epoch = int(time.mktime(fields))
    return epoch * NANOSECONDS + int((fraction or "").ljust(9, "0"))
