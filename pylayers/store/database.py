"""The SQLite file image/metadata.db: connection, schema, transactions. The first use opens it (and imports SQLite).

`_sqlite3` is what `sqlite3` is made of; that one adds its ways to store dates, and loads datetime for them (2 ms).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pylayers.errors import (
    AlreadyExists,
    Conflict,
    IntegrityError,
    NoSpace,
    PermissionDenied,
    PylayersError,
    Unsupported,
)
from pylayers.thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    from _typeshed import StrPath

    Rows = list[tuple[Any, ...]]

BUSY_TIMEOUT_MS = 30_000
BUSY_PAUSE_S = 0.005
# Pages of the log after which a commit moves them into the file: whoever opens it next without others reads them all,
# 0.5 ms for as many (SQLite's own 1000: 2.3 ms).
LOG_PAGES = 100
REBUILD_HINT = "run: pylayers system rebuild"

# One tuple of statements per schema version; what is released is never changed, only added to.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE reference(name TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID",
        "CREATE INDEX reference_digest ON reference(digest)",
        """CREATE TABLE image(digest TEXT PRIMARY KEY, config_digest TEXT NOT NULL,
           size_bytes INTEGER NOT NULL, built_ns INTEGER NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX image_config ON image(config_digest)",
        """CREATE TABLE image_layer(image TEXT NOT NULL REFERENCES image(digest) ON DELETE CASCADE,
           position INTEGER NOT NULL, diff_id TEXT NOT NULL, PRIMARY KEY(image, position)) WITHOUT ROWID""",
        """CREATE TABLE chain(chain_id TEXT PRIMARY KEY,
           parent TEXT REFERENCES chain(chain_id) DEFERRABLE INITIALLY DEFERRED,
           diff_id TEXT NOT NULL, tree_digest BLOB) WITHOUT ROWID""",
        "CREATE INDEX chain_parent ON chain(parent)",
        """CREATE TABLE step(key TEXT PRIMARY KEY, partial_key TEXT NOT NULL, kind TEXT NOT NULL, diff_id TEXT,
           chain_id TEXT, tree_digest BLOB, config_delta TEXT NOT NULL, size_bytes INTEGER NOT NULL,
           created_ns INTEGER NOT NULL, last_used_ns INTEGER NOT NULL, instruction TEXT NOT NULL,
           inputs TEXT NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX step_partial ON step(partial_key)",
        """CREATE TABLE lease(id TEXT PRIMARY KEY, purpose TEXT NOT NULL, owner TEXT NOT NULL, pid INTEGER NOT NULL,
           created_ns INTEGER NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE lease_item(lease TEXT NOT NULL REFERENCES lease(id) ON DELETE CASCADE, kind TEXT NOT NULL,
           name TEXT NOT NULL, PRIMARY KEY(lease, kind, name)) WITHOUT ROWID""",
        """CREATE TABLE volume(name TEXT PRIMARY KEY, driver TEXT NOT NULL, labels TEXT NOT NULL,
           created_ns INTEGER NOT NULL, anonymous INTEGER NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE container(id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, image_digest TEXT,
           chain_id TEXT, created_ns INTEGER NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX container_image ON container(image_digest)",
    ),
    # A volume's own volume.json says all that is known of it; the table was never written.
    ("DROP TABLE volume",),
    # A step may make several layers: those under its diff_id, separated by blanks.
    ("ALTER TABLE step ADD COLUMN below TEXT NOT NULL DEFAULT ''",),
    # The few names that stand for no image (but an index, say) are kept by themselves: every lookup reads them all.
    # INSERT OR REPLACE runs no trigger for the row that goes, so that the one for the new row clears both.
    (
        "CREATE TABLE reference_other(name TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID",
        "CREATE INDEX reference_other_digest ON reference_other(digest)",
        """INSERT INTO reference_other SELECT name, digest FROM reference
           WHERE digest NOT IN (SELECT digest FROM image)""",
        """CREATE TRIGGER reference_added AFTER INSERT ON reference BEGIN
           DELETE FROM reference_other WHERE name=NEW.name;
           INSERT INTO reference_other SELECT NEW.name, NEW.digest
           WHERE NOT EXISTS(SELECT 1 FROM image WHERE digest=NEW.digest); END""",
        """CREATE TRIGGER reference_removed AFTER DELETE ON reference BEGIN
           DELETE FROM reference_other WHERE name=OLD.name; END""",
        """CREATE TRIGGER image_added AFTER INSERT ON image BEGIN
           DELETE FROM reference_other WHERE digest=NEW.digest; END""",
        """CREATE TRIGGER image_removed AFTER DELETE ON image BEGIN
           INSERT INTO reference_other SELECT name, digest FROM reference WHERE digest=OLD.digest; END""",
    ),
)

_left: list[sqlite3.Connection] = []


class Database:
    """Run statements on one connection, shared by the threads of a process under one lock.

    Not to be used in a forked child. Locks are taken before a transaction begins, never within (locking.md).
    """

    def __init__(self, path: StrPath, *, expected: Callable[[], bool] | None = None) -> None:
        """Name the file. It is made when missing, unless `expected` says that there must have been one."""
        self._path = os.fspath(path)
        self._expected = expected
        self._mutex = RLock()
        self._connection: sqlite3.Connection | None = None
        self._depth = 0

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            import _sqlite3 as sqlite3

            if self._expected is not None and not os.path.exists(self._path) and self._expected():
                raise IntegrityError(f"{self._path} is missing, though there are images", hint=REBUILD_HINT)
            connection = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
            )
            try:
                choose_journal(connection)
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA foreign_keys=ON")
                connection.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
                migrate(connection, self._path)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    @contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            import _sqlite3 as sqlite3

            try:
                yield self._connect()
            except sqlite3.Error as error:
                raise translate_sqlite_error(error, self._path) from error

    def read(self, statement: str, values: tuple[object, ...] = ()) -> Rows:
        """Return all rows of a query."""
        with self._guarded() as connection:
            return connection.execute(statement, values).fetchall()

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Run a transaction: all or nothing, joined to an outer one in the same thread.

        durable=False skips the sync at its end: after a power loss it may be missing, but never half there.
        """
        with self._guarded() as connection:
            if self._depth:
                yield connection
                return
            try:
                if not durable and self._is_log_empty():
                    # What a new log holds needs no flush before it counts: nothing older could be taken for it.
                    connection.execute("PRAGMA synchronous=OFF")
                    connection.execute("PRAGMA wal_autocheckpoint=0")  # which would write the database without one
                    connection.execute("BEGIN IMMEDIATE")
                    if not self._is_log_empty():  # another process was faster
                        connection.execute("ROLLBACK")
                if not connection.in_transaction:
                    if not durable:
                        connection.execute("PRAGMA synchronous=NORMAL")
                    connection.execute("BEGIN IMMEDIATE")
                self._depth = 1
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                finally:
                    self._depth = 0
            finally:
                if not durable:
                    connection.execute("PRAGMA synchronous=FULL")
                    connection.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")

    def _is_log_empty(self) -> bool:
        try:
            return os.stat(f"{self._path}-wal").st_size == 0
        except FileNotFoundError:
            return True

    def execute(self, statement: str, values: tuple[object, ...] = (), *, durable: bool = True) -> int:
        """Run one statement in its own transaction and return how many rows it changed."""
        with self.write(durable=durable) as connection:
            return connection.execute(statement, values).rowcount

    def check(self) -> list[str]:
        """Return what SQLite's own integrity checks find wrong; empty when all is well."""
        try:
            found = [str(row[0]) for row in self.read("PRAGMA integrity_check") if row[0] != "ok"]
            found += [f"foreign key: {row}" for row in self.read("PRAGMA foreign_key_check")]
        except IntegrityError as error:
            return [error.message]
        return found

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self._mutex:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def leave(self) -> None:
        """Leave the connection to the end of this process, which is near; as safe as a close.

        The last close of all moves the log into the file and deletes it, which flushes the disk twice, as does making
        it anew for the next process.
        """
        with self._mutex:
            if self._connection is not None:
                _left.append(self._connection)
                self._connection = None


def choose_journal(connection: sqlite3.Connection) -> None:
    """Turn on write-ahead logging, which the file then keeps.

    Of two connections that do so at once SQLite refuses one without asking the busy handler (each holds what the other
    waits for), so that it is asked again here until BUSY_TIMEOUT_MS are over.
    """
    import _sqlite3 as sqlite3

    deadline_s = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
        time.sleep(BUSY_PAUSE_S)


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the schema up to date; refuse one that is newer."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]  # another process may have been first
        if version > len(MIGRATIONS):
            raise Unsupported(
                f"{path}: schema version {version}, this pylayers knows {len(MIGRATIONS)}", hint="upgrade pylayers"
            )
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def translate_sqlite_error(error: sqlite3.Error, path: str) -> PylayersError:
    """Turn an error of SQLite into the named error a user should see."""
    message = f"{path}: {error}"
    # The low byte of an extended code is the primary one.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    makers: dict[int, Callable[[], PylayersError]] = {
        5: lambda: Conflict(f"{message} (another process holds the database)"),  # SQLITE_BUSY
        6: lambda: Conflict(message),  # SQLITE_LOCKED
        8: lambda: PermissionDenied(message),  # SQLITE_READONLY
        11: lambda: IntegrityError(message, hint=REBUILD_HINT),  # SQLITE_CORRUPT
        13: lambda: NoSpace(message, hint="free space with: pylayers system prune"),  # SQLITE_FULL
        14: lambda: PermissionDenied(message),  # SQLITE_CANTOPEN
        19: lambda: AlreadyExists(message),  # SQLITE_CONSTRAINT
        26: lambda: IntegrityError(message, hint=REBUILD_HINT),  # SQLITE_NOTADB
    }
    return makers.get(code, lambda: PylayersError(message))()
