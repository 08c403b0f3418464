"""A study in one SQLite file: what is judged, by whom, and every answer.

The file is complete after every call: an answer is on the disk before `Study.answer` returns (a rollback journal with
``synchronous=EXTRA``), and is kept once, however often it is sent. Several threads may share a `Study`; another process
may read the file meanwhile. No observer's name or address is stored, only a pseudonym and the hash of a secret.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path, PureWindowsPath
from typing import Any, cast

from lpips_lightning.judge.records import (
    CHOICES,
    Answer,
    Design,
    Image,
    Item,
    Observer,
    Reason,
    Session,
    StudyError,
    Trial,
)

_FORMAT = "1"
_MADE_WITH = "made_with"
_ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"  # no 0 and O, 1 and I
_SCHEMA = """
CREATE TABLE study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE image (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL);
CREATE TABLE item (id INTEGER PRIMARY KEY, purpose TEXT NOT NULL, ref INTEGER NOT NULL REFERENCES image,
    p0 INTEGER NOT NULL REFERENCES image, p1 INTEGER REFERENCES image, expected TEXT,
    method0 TEXT NOT NULL DEFAULT '', method1 TEXT NOT NULL DEFAULT '');
CREATE TABLE distance (metric TEXT NOT NULL, item INTEGER NOT NULL REFERENCES item, d0 REAL NOT NULL, d1 REAL,
    PRIMARY KEY (metric, item));
CREATE TABLE observer (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, secret TEXT NOT NULL UNIQUE,
    consented REAL NOT NULL, client TEXT NOT NULL);
CREATE TABLE session (id INTEGER PRIMARY KEY, observer INTEGER NOT NULL REFERENCES observer, number INTEGER NOT NULL,
    started REAL NOT NULL, finished REAL, passed INTEGER, UNIQUE (observer, number));
CREATE TABLE plan (session INTEGER PRIMARY KEY REFERENCES session, slots TEXT NOT NULL);
CREATE TABLE trial (id INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES session, position INTEGER NOT NULL,
    item INTEGER NOT NULL REFERENCES item, reason TEXT NOT NULL, swapped INTEGER NOT NULL, assigned REAL NOT NULL,
    UNIQUE (session, position));
CREATE TABLE answer (trial INTEGER PRIMARY KEY REFERENCES trial, choice TEXT NOT NULL, answered REAL NOT NULL,
    response_ms REAL NOT NULL, slipped INTEGER NOT NULL, timing TEXT NOT NULL);
CREATE INDEX trial_of_item ON trial (item);
"""


class Study:
    """The file of a study; make one with `Study.create`, open one with `Study.open`.

    Attributes:
        path: The SQLite file.
        design: How the study is conducted.
        folder: Folder of the images: where they were written, or, if it is not there any more, that of the same name
            beside the file, as after both were copied to another machine.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._connection, self._lock = path, connection, threading.RLock()
        values = dict(connection.execute("SELECT key, value FROM study").fetchall())
        self.design = Design(**json.loads(values["design"]))
        self.folder = _images_folder(path, values["folder"])
        self._place = _place(path)

    @classmethod
    def create(
        cls, path: str | Path, design: Design, folder: str | Path, images: Iterable[Image], items: Iterable[Item]
    ) -> Study:
        """Make the file of a new study.

        Args:
            path: The file; must not exist.
            design: How the study is conducted.
            folder: Folder of the images.
            images: All images.
            items: What is judged, and items for practice and sentinels.

        Raises:
            FileExistsError: If the file exists.
            StudyError: If an item names an unknown image, or its answer or number of candidates do not fit the test.
        """
        images, items = list(images), list(items)
        _check_items(design, images, items)
        target = Path(path).expanduser()
        if target.exists():
            raise FileExistsError(f"out: expected a new file, got '{target}', which exists")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
        try:
            connection = _connect(temporary)
            connection.executescript(_SCHEMA)
            with connection:
                connection.execute("BEGIN")  # else every row is synchronized to the disk by itself
                values = {"format": _FORMAT, "design": json.dumps(asdict(design))}
                values |= {"folder": str(Path(folder).expanduser().resolve()), "created": str(time.time())}
                connection.executemany("INSERT INTO study VALUES (?, ?)", values.items())
                _insert(connection, "image", images)
                _insert(connection, "item", items)
            connection.close()
            target.hardlink_to(temporary)  # fails where another process was faster
        finally:
            temporary.unlink(missing_ok=True)
        return cls.open(target)

    @classmethod
    def open(cls, path: str | Path) -> Study:
        """Open the file of a study.

        Raises:
            StudyError: If there is no such file, or it is of another kind or version.
        """
        target = Path(path).expanduser()
        if not target.is_file():
            why = "is a folder" if target.is_dir() else "does not exist"
            raise StudyError(f"expected the file of a study, got '{target}', which {why}")
        try:
            connection = _connect(target)
            found = connection.execute("SELECT value FROM study WHERE key = 'format'").fetchone()
        except sqlite3.DatabaseError as error:
            raise StudyError(f"expected the file of a study, got '{target}': {error}") from error
        if found != (_FORMAT,):
            raise StudyError(f"expected a study of format {_FORMAT}, got {found and found[0]!r} in '{target}'")
        return cls(target, connection)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def is_in_place(self) -> bool:
        """Whether the file is still under its name; what is written to a deleted file is lost."""
        return _place(self.path) == self._place

    def check_writable(self) -> None:
        """Write into the file, and take it back.

        Raises:
            StudyError: If that fails, as answers would.
        """
        try:
            with self.transaction() as connection:
                connection.execute("INSERT INTO study VALUES ('check', '')")
                connection.execute("DELETE FROM study WHERE key = 'check'")
        except sqlite3.OperationalError as error:
            raise StudyError(f"expected a file to write answers into, got '{self.path}': {error}") from error

    def images(self) -> dict[int, Image]:
        """All images by number."""
        return {row[0]: Image(*row) for row in self._rows("SELECT * FROM image ORDER BY id")}

    def items(self, purpose: str | None = None) -> dict[int, Item]:
        """Items by number, all or those of one purpose."""
        rows = self._rows("SELECT * FROM item WHERE ? IN (purpose, 'all') ORDER BY id", purpose or "all")
        return {row[0]: Item(*row) for row in rows}

    def item(self, number: int) -> Item:
        """An item by its number."""
        (row,) = self._rows("SELECT * FROM item WHERE id = ?", number)
        return Item(*row)

    def set_distances(self, metric: str, distances: Mapping[int, tuple[float, float | None]]) -> None:
        """Store distances ``(ref, p0)`` and ``(ref, p1)`` of items by a metric, in place of earlier ones of it."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM distance WHERE metric = ?", (metric,))
            rows = [(metric, item, *pair) for item, pair in distances.items()]
            connection.executemany("INSERT INTO distance VALUES (?, ?, ?, ?)", rows)

    def distances(self) -> dict[str, dict[int, tuple[float, float | None]]]:
        """Stored distances by metric and item."""
        found: dict[str, dict[int, tuple[float, float | None]]] = {}
        for metric, item, d0, d1 in self._rows("SELECT * FROM distance ORDER BY metric, item"):
            found.setdefault(metric, {})[item] = d0, d1
        return found

    def enroll(self, client: Mapping[str, Any] | None = None) -> tuple[Observer, str]:
        """A new observer, who has agreed to the text of consent.

        Args:
            client: What the page knows of the screen, JSON-serializable.

        Returns:
            The observer, and the secret by which the observer comes back; only its hash is stored.
        """
        secret = secrets.token_urlsafe(24)
        name = "".join(secrets.choice(_ALPHABET) for _ in range(6))
        with self.transaction() as connection:
            values = (name, _digest(secret), time.time(), json.dumps(dict(client or {})))
            cursor = connection.execute(
                "INSERT INTO observer (name, secret, consented, client) VALUES (?, ?, ?, ?)", values
            )
        return Observer(cast("int", cursor.lastrowid), name), secret

    def observer(self, secret: str) -> Observer | None:
        """The observer with a secret, or None."""
        rows = self._rows("SELECT id, name FROM observer WHERE secret = ?", _digest(secret))
        return Observer(*rows[0]) if rows else None

    def observers(self) -> list[Observer]:
        """All observers in the order in which they came."""
        return [Observer(*row) for row in self._rows("SELECT id, name FROM observer ORDER BY id")]

    def sessions(self, observer: int | None = None) -> list[Session]:
        """Sessions of an observer, or of all, in their order."""
        rows = self._rows("SELECT * FROM session WHERE ? IN (observer, -1) ORDER BY id", observer or -1)
        return [_session(row) for row in rows]

    def start_session(self, observer: int) -> Session:
        """The open session of an observer, or a new one."""
        with self.transaction() as connection:
            sessions = self.sessions(observer)
            if not sessions or sessions[-1].finished is not None:
                values = (observer, len(sessions), time.time())
                connection.execute("INSERT INTO session (observer, number, started) VALUES (?, ?, ?)", values)
        return self.sessions(observer)[-1]

    def finish_session(self, session: int, passed: bool) -> None:
        """Finish a session; does nothing if it is finished."""
        with self.transaction() as connection:
            values = (time.time(), passed, session)
            connection.execute("UPDATE session SET finished = ?, passed = ? WHERE id = ? AND finished IS NULL", values)

    def assign(self, session: int, position: int, item: int, reason: Reason, swapped: bool) -> Trial:
        """The trial at a position of a session; made if there is none, else the one that is there."""
        with self.transaction() as connection:
            values = (session, position, item, reason, swapped, time.time())
            connection.execute(
                "INSERT OR IGNORE INTO trial (session, position, item, reason, swapped, assigned)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )
        return next(trial for trial in self.trials(session) if trial.position == position)

    def trials(self, session: int) -> list[Trial]:
        """Trials of a session in their order."""
        rows = self._rows("SELECT * FROM trial WHERE session = ? ORDER BY position", session)
        return [_trial(row) for row in rows]

    def answer(
        self,
        trial: int,
        choice: str,
        response_ms: float,
        *,
        slipped: bool = False,
        timing: Mapping[str, Any] | None = None,
    ) -> bool:
        """Keep an answer; the first one of a trial counts.

        Args:
            trial: Number of the trial.
            choice: One of `CHOICES` of the test.
            response_ms: Time to the answer in milliseconds.
            slipped: Whether the display differed from what was asked.
            timing: What the page measured, JSON-serializable.

        Returns:
            Whether it was kept; False if the trial has an answer, which stays.

        Raises:
            StudyError: If the choice is none of the test, or there is no such trial.
        """
        if choice not in CHOICES[self.design.test]:
            raise StudyError(f"choice: expected one of {', '.join(CHOICES[self.design.test])}, got {choice!r}")
        with self.transaction() as connection:
            if not connection.execute("SELECT 1 FROM trial WHERE id = ?", (trial,)).fetchone():
                raise StudyError(f"trial: expected a trial of this study, got {trial}")
            values = (trial, choice, time.time(), response_ms, slipped, json.dumps(dict(timing or {})))
            kept = connection.execute("INSERT OR IGNORE INTO answer VALUES (?, ?, ?, ?, ?, ?)", values).rowcount
        return bool(kept)

    def answers(self, session: int | None = None) -> list[Answer]:
        """All answers, or those of a session, in the order in which they came."""
        rows = self._rows(
            "SELECT trial.id, item, name, session.id, position, reason, swapped, choice, answered, response_ms,"
            " slipped, passed, timing FROM answer JOIN trial ON trial.id = answer.trial"
            " JOIN session ON session.id = trial.session JOIN observer ON observer.id = session.observer"
            " WHERE ? IN (session.id, -1) ORDER BY answered, trial.id",
            session or -1,
        )
        return [_answer(row) for row in rows]

    def count_answers(self) -> int:
        """Number of answers, of whatever kind."""
        return int(self._rows("SELECT COUNT(*) FROM answer")[0][0])

    def answered_trials(self, session: int) -> set[int]:
        """Numbers of the answered trials of a session."""
        query = "SELECT trial FROM answer JOIN trial ON trial.id = answer.trial WHERE session = ?"
        return {row[0] for row in self._rows(query, session)}

    def find_trial(self, trial: int, observer: int) -> Trial | None:
        """A trial by its number, or None if it is not one of the observer."""
        query = (
            "SELECT trial.* FROM trial JOIN session ON session.id = trial.session WHERE trial.id = ? AND observer = ?"
        )
        rows = self._rows(query, trial, observer)
        return _trial(rows[0]) if rows else None

    def choice(self, trial: int) -> str | None:
        """The answer of a trial, one of `CHOICES`, or None."""
        rows = self._rows("SELECT choice FROM answer WHERE trial = ?", trial)
        return rows[0][0] if rows else None

    def shown(self, observer: int) -> set[int]:
        """Numbers of the items that an observer was shown."""
        query = "SELECT item FROM trial JOIN session ON session.id = trial.session WHERE observer = ?"
        return {row[0] for row in self._rows(query, observer)}

    def tally(self, since: float) -> dict[int, int]:
        """Votes by judged item: answers that count, and trials assigned after `since` that wait for their answer.

        Answers of failed sessions, repeats, and for JND those whose display slipped do not count.
        """
        query = (
            "SELECT item, COUNT(*) FROM trial JOIN session ON session.id = trial.session"
            " LEFT JOIN answer ON answer.trial = trial.id WHERE reason IN ('random', 'active') AND passed IS NOT 0"
            " AND CASE WHEN choice IS NULL THEN assigned > ? ELSE slipped = 0 OR ? END GROUP BY item"
        )
        return dict(self._rows(query, since, self.design.test == "2afc"))

    def plan(self, session: int) -> str | None:
        """The plan of a session as `set_plan` stored it, or None."""
        rows = self._rows("SELECT slots FROM plan WHERE session = ?", session)
        return rows[0][0] if rows else None

    def set_plan(self, session: int, slots: str) -> None:
        """Store the plan of a session; the first one stays."""
        with self.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO plan VALUES (?, ?)", (session, slots))

    def value(self, key: str) -> str | None:
        """What `set_value` stored under a key, or None."""
        rows = self._rows("SELECT value FROM study WHERE key = ?", key)
        return rows[0][0] if rows else None

    def set_value(self, key: str, value: str) -> None:
        """Store a value beside the design, in place of an earlier one."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO study VALUES (?, ?)", (key, value))

    def made_with(self) -> dict[str, Any]:
        """The options of `judge serve` that made the study; empty if another program did."""
        return dict(json.loads(self.value(_MADE_WITH) or "{}"))

    def set_made_with(self, options: Mapping[str, Any]) -> None:
        """Store what `made_with` returns."""
        self.set_value(_MADE_WITH, json.dumps(dict(options)))

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """What is read and written inside is one step for other threads and processes; may be nested."""
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA synchronous = EXTRA")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _images_folder(path: Path, stored: str) -> Path:
    """The folder of a study's images; `stored` is where they were written, maybe by another system."""
    beside = path.absolute().parent / PureWindowsPath(stored).name
    return beside if beside.is_dir() and not Path(stored).is_dir() else Path(stored)


def _place(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[Image] | Sequence[Item]) -> None:
    if rows:
        names = [one.name for one in fields(rows[0])]
        marks = ", ".join("?" * len(names))
        values = [[getattr(row, name) for name in names] for row in rows]
        connection.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", values)


def _session(row: Sequence[Any]) -> Session:
    number, observer, index, started, finished, passed = row
    return Session(number, observer, index, started, finished, None if passed is None else bool(passed))


def _trial(row: Sequence[Any]) -> Trial:
    number, session, position, item, reason, swapped, assigned = row
    return Trial(number, session, position, item, reason, bool(swapped), assigned)


def _answer(row: Sequence[Any]) -> Answer:
    values = dict(zip((one.name for one in fields(Answer)), row, strict=True))
    values |= {name: bool(values[name]) for name in ("swapped", "slipped")}
    values["passed"] = None if values["passed"] is None else bool(values["passed"])
    return Answer(**{**values, "timing": json.loads(values["timing"])})


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _check_items(design: Design, images: Sequence[Image], items: Sequence[Item]) -> None:
    known, choices = {image.id for image in images}, CHOICES[design.test]
    if not any(item.purpose == "judged" for item in items):
        raise StudyError("items: expected at least one to judge, got none")
    for item in items:
        used = [image for image in (item.ref, item.p0, item.p1) if image is not None]
        if len(used) != (3 if design.test == "2afc" else 2):
            raise StudyError(f"items: expected {len(choices)} images for {design.test}, got item {item.id}")
        if not known.issuperset(used):
            raise StudyError(f"items: expected images of the study, got another one in item {item.id}")
        if (item.expected is None) != (item.purpose == "judged") or item.expected not in (None, *choices):
            raise StudyError(f"items: expected an answer for practice and sentinels alone, got item {item.id}")
