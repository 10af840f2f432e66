"""ADD of URLs: downloads as files; what a server calls unchanged is not fetched again unless its bytes are needed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from blake3 import blake3

from pylayers.build.session import BuildSession
from pylayers.build.source.table import TableTree
from pylayers.errors import Conflict, IntegrityError, InvalidInput, NotFound, PermissionDenied, PylayersError
from pylayers.record import record
from pylayers.store.entry import FLAG_HASHED, TableBuilder
from pylayers.store.row import Entry

FILE_MODE = 0o600
REDIRECT_LIMIT = 10
SIZE_LIMIT_BYTES = 64 << 30
PIECE_BYTES = 1 << 20
CONNECT_S = 30
READ_S = 120


class DownloadFailed(PylayersError):
    """A server could not be reached, refused, or broke off."""

    exit_code = 9


@record
class Download:
    """What came from a URL; `descriptor` is -1 where only its description is known."""

    size_bytes: int
    blake3: str
    sha256: str
    mtime_s: int
    etag: str
    last_modified: str
    descriptor: int = -1


def name_from_url(url: str) -> str:
    """Return the name that a download has in a directory: the last component of the URL's path."""
    name = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]
    return name if name not in ("", ".", "..") and "\0" not in name else "__unnamed__"


def open_url(
    session: BuildSession, url: str, checksum: str | None = None, *, unpack: bool = False, owned: bool = False
) -> TableTree:
    """Open a URL's file as a source; with `unpack` the members of what is an archive.

    Raises NotFound, PermissionDenied, IntegrityError (checksum, broken off), InvalidInput, DownloadFailed.
    """
    if checksum is not None and not checksum.startswith("sha256:"):
        raise InvalidInput(f"{url}: only sha256 checksums are compared, not {checksum.partition(':')[0]}")
    name = name_from_url(url)
    known = recall(session, url)
    if known is None or checksum is None or checksum != f"sha256:{known.sha256}":
        session.settle()
        known = fetch(session, url, None if unpack else known)
        check_sum(url, known, checksum)
        remember(session, url, known)
    found = known
    if unpack:
        from pylayers.build.source.archive import open_members

        content = found.descriptor if found.descriptor >= 0 else fetch_same(session, url, found)
        members = open_members(session.store, os.dup(content), name, owned)
        if members is not None:
            os.close(content)
            return members
        found = Download(**{**describe(found), "descriptor": content})
    builder = TableBuilder()
    entry = Entry(
        mode=stat.S_IFREG | FILE_MODE,
        size_bytes=found.size_bytes,
        mtime_ns=found.mtime_s * 1_000_000_000,
        flags=FLAG_HASHED,
        blake3=bytes.fromhex(found.blake3),
    )
    builder.add(os.fsencode(name), entry)

    def open_content() -> list[int]:
        return [os.dup(found.descriptor) if found.descriptor >= 0 else fetch_same(session, url, found)]

    kept = [found.descriptor] if found.descriptor >= 0 else []
    return TableTree(builder.build()[0], 0, 1, name, 1, open_content, kept=kept)


def fetch_same(session: BuildSession, url: str, known: Download) -> int:
    """Fetch what is known by its description and return the descriptor. Raises Conflict when it changed."""
    session.settle()
    fetched = fetch(session, url, None)
    if fetched.sha256 != known.sha256:
        os.close(fetched.descriptor)
        raise Conflict(f"{url} changed while it was read", hint="run the build again")
    return fetched.descriptor


def check_sum(url: str, found: Download, checksum: str | None) -> None:
    """Compare with --checksum; the content is closed when it differs."""
    if checksum is not None and checksum != f"sha256:{found.sha256}":
        if found.descriptor >= 0:
            os.close(found.descriptor)
        raise IntegrityError(f"{url}: digest mismatch: sha256:{found.sha256} is not {checksum}")


def fetch(session: BuildSession, url: str, known: Download | None) -> Download:
    """Ask for a URL; what is known already is returned as it is when the server says that it is unchanged."""
    try:
        import httpx
    except ImportError:
        raise DownloadFailed(f"{url} needs the package httpx", hint="pip install httpx") from None
    headers = {"Accept-Encoding": "identity"}
    if known is not None and known.etag:
        headers["If-None-Match"] = known.etag
    elif known is not None and known.last_modified:
        headers["If-Modified-Since"] = known.last_modified
    try:
        with (
            httpx.Client(
                follow_redirects=True,
                max_redirects=REDIRECT_LIMIT,
                timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
            ) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            if response.status_code == 304 and known is not None:
                return known
            refuse_status(url, response.status_code, response.reason_phrase)
            return receive(session, url, response)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidInput(f"{url}: {error}") from error
    except httpx.TooManyRedirects as error:
        raise InvalidInput(f"{url}: stopped after {REDIRECT_LIMIT} redirects") from error
    except httpx.RemoteProtocolError as error:
        raise IntegrityError(f"{url}: the server broke off: {error}") from error
    except httpx.HTTPError as error:
        raise DownloadFailed(f"{url}: {error or type(error).__name__}") from error


def refuse_status(url: str, status: int, reason: str) -> None:
    """Raise the error that belongs to an answer other than success."""
    if 200 <= status < 300:
        return
    message = f"{url}: the server answered {status} {reason}".rstrip()
    if status in (404, 410):
        raise NotFound(message)
    if status in (401, 403):
        raise PermissionDenied(message)
    raise DownloadFailed(message)


def receive(session: BuildSession, url: str, response: Any) -> Download:
    """Write an answer's body to a file without a name, hashing it."""
    from pylayers.build.source.archive import open_nameless

    announced = response.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > SIZE_LIMIT_BYTES:
        raise InvalidInput(f"{url}: {announced} bytes are more than the {SIZE_LIMIT_BYTES} that ADD fetches")
    descriptor = open_nameless(session.store)
    fast, sha = blake3(), hashlib.sha256()
    size_bytes = 0
    try:
        for piece in response.iter_raw(PIECE_BYTES):
            session.check_cancelled()
            size_bytes += len(piece)
            if size_bytes > SIZE_LIMIT_BYTES:
                raise InvalidInput(f"{url}: more than the {SIZE_LIMIT_BYTES} bytes that ADD fetches")
            fast.update(piece)
            sha.update(piece)
            view = memoryview(piece)
            while view:
                view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    modified = response.headers.get("last-modified", "")
    return Download(
        size_bytes, fast.hexdigest(), sha.hexdigest(), read_time(modified),
        response.headers.get("etag", ""), modified, descriptor,
    )  # fmt: skip


def read_time(text: str) -> int:
    """Return a Last-Modified header's time in seconds, 0 for none."""
    try:
        return max(0, int(parsedate_to_datetime(text).timestamp()))
    except (ValueError, TypeError, OverflowError):
        return 0


def describe(found: Download) -> dict[str, Any]:
    """Return a download's description as it is kept."""
    return {
        "size_bytes": found.size_bytes,
        "blake3": found.blake3,
        "sha256": found.sha256,
        "mtime_s": found.mtime_s,
        "etag": found.etag,
        "last_modified": found.last_modified,
    }


def place_of(session: BuildSession, url: str) -> str:
    """Return where a URL's description is kept."""
    return os.path.join(session.store.root, "buildkit", "http", hashlib.sha256(url.encode()).hexdigest())


def recall(session: BuildSession, url: str) -> Download | None:
    """Return what the last download of a URL was; None when nothing is known or it can't be read."""
    try:
        with open(place_of(session, url), encoding="utf-8") as stream:
            kept = json.load(stream)
        known = Download(**{name: kept[name] for name in describe(Download(0, "", "", 0, "", ""))})
        sound = isinstance(known.size_bytes, int) and len(bytes.fromhex(known.blake3)) == 32
        return known if sound else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(session: BuildSession, url: str, found: Download) -> None:
    """Keep a download's description; a lost one costs a download."""
    place = place_of(session, url)
    beside = f"{place}.{os.urandom(6).hex()}"
    try:
        os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
        with open(beside, "w", encoding="utf-8") as stream:
            json.dump(describe(found), stream)
        os.replace(beside, place)
    except OSError:  # a full disk shows itself where it matters
        return
