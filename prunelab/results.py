"""The results of sweeps: one SQLite file, one row for each run, safe to be killed at and to be shared.

A row's key is a hash of the run's full configuration and the version of the package: what was measured by
another version is not taken for a result of this one, so **a change of the code that changes results needs a
new version number**. A run is *claimed* before it begins. A claim belongs to one sweep, which says every few
seconds that it is alive; when it has been silent for the length of a lease, others may claim its runs.

The file is in SQLite's write-ahead mode: processes of one machine may read and write it at once, and a
process that is killed leaves a whole file. Machines must not share it over a network.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TABLE = """
CREATE TABLE IF NOT EXISTS runs (
    key TEXT PRIMARY KEY,
    version TEXT NOT NULL,
    configuration TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed')),
    owner TEXT NOT NULL,
    alive REAL NOT NULL,  -- when the owner last said that it is
    finished REAL,
    seconds REAL,
    result TEXT,
    facts TEXT,
    error TEXT
)
"""


def key(configuration: dict[str, Any], version: str) -> str:
    """What a run's row is found by; the order of the entries plays no part."""
    text = json.dumps({"configuration": configuration, "version": version}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        state: ``"running"``, ``"done"`` or ``"failed"``.
        alive: when its owner last said that it is, in seconds since 1970.
        seconds: how long the run took.
        result: what it measured; empty unless done.
        facts: where that was: versions, machine, data.
        error: what it raised, if it failed.
    """

    key: str
    version: str
    configuration: dict[str, Any]
    state: str
    alive: float
    seconds: float | None = None
    result: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def flat(self) -> dict[str, Any]:
        """Configuration and result in one level, for tables: ``{"prune.criterion": "l1", "accuracy": …}``."""
        return {
            **flat(self.configuration),
            **flat(self.result),
            "seconds": self.seconds,
            "version": self.version,
        }


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level of a nested mapping, its keys joined by dots."""
    result: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result


class Store:
    """A results file, seen by one sweep (which is the *owner* of the runs that it claims).

    Args:
        path: the file; made with its folder if it is not there.
        lease: seconds of silence after which a claim is void.
    Raises:
        ValueError: the file is something else.
    """

    def __init__(self, path: str | os.PathLike, lease: float = 30.0):
        self.path, self.lease = Path(path), lease
        self.owner = uuid.uuid4().hex
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.database = self._connect()
        try:
            self.database.execute(TABLE)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is not a file of results ({error}): name another one") from error

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=60, isolation_level=None)  # each statement commits
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")  # a result outlives even a power cut
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is not a file of results ({error}): name another one") from error
        return database

    def close(self) -> None:
        self.database.close()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """While this block runs, say again and again that the owner is alive; at its end give back what is
        still claimed.
        """
        over = threading.Event()

        def beat() -> None:
            database = self._connect()  # a connection belongs to one thread
            while not over.wait(self.lease / 6):
                with suppress(sqlite3.OperationalError):  # busy for a minute: the next beat may come through
                    database.execute(
                        "UPDATE runs SET alive = ? WHERE owner = ? AND state = 'running'",
                        (time.time(), self.owner),
                    )
            database.close()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.database.execute("DELETE FROM runs WHERE owner = ? AND state = 'running'", (self.owner,))

    def claim(self, configuration: dict[str, Any], version: str, failed_before: float = 0.0) -> bool:
        """Try to make a run the owner's own. Of many that try at once, one succeeds.

        Args:
            failed_before: also take runs that failed before this time (seconds since 1970).
        """
        now = time.time()
        changed = self.database.execute(
            """
            INSERT INTO runs (key, version, configuration, state, owner, alive)
            VALUES (:key, :version, :configuration, 'running', :owner, :now)
            ON CONFLICT (key) DO UPDATE
            SET state = 'running', owner = :owner, alive = :now, finished = NULL, error = NULL
            WHERE (state = 'running' AND alive < :silent) OR (state = 'failed' AND finished < :failed_before)
            """,
            {
                "key": key(configuration, version),
                "version": version,
                "configuration": json.dumps(configuration),
                "owner": self.owner,
                "now": now,
                "silent": now - self.lease,
                "failed_before": failed_before,
            },
        )
        return changed.rowcount == 1

    def release(self, run_key: str) -> None:
        """Give a claimed run back, for anyone to claim."""
        self.database.execute(
            "DELETE FROM runs WHERE key = ? AND owner = ? AND state = 'running'", (run_key, self.owner)
        )

    def record(
        self,
        run_key: str,
        *,
        result: dict[str, Any] | None = None,
        error: str | None = None,
        seconds: float | None = None,
        facts: dict[str, Any] | None = None,
    ) -> bool:
        """Write down how a claimed run ended.

        Returns:
            False if the claim is not the owner's any more: the run is then somebody else's to record.
        """
        changed = self.database.execute(
            """
            UPDATE runs SET state = ?, finished = ?, seconds = ?, result = ?, facts = ?, error = ?
            WHERE key = ? AND owner = ? AND state = 'running'
            """,
            (
                "done" if error is None else "failed",
                time.time(),
                seconds,
                json.dumps(result or {}),
                json.dumps(facts or {}),
                error,
                run_key,
                self.owner,
            ),
        )
        return changed.rowcount == 1

    def take(self, runs: Iterable[Mapping[str, Any]], version: str) -> int:
        """Write down what was done elsewhere; what is done here already stays as it is.

        Args:
            runs: as :func:`from_json` gives them.
            version: of the package that did them.
        Returns:
            How many of the runs are new here.
        """
        rows = [
            {
                "key": key(one["configuration"], version),
                "version": version,
                "configuration": json.dumps(one["configuration"]),
                "owner": self.owner,
                "now": time.time(),
                "seconds": one["seconds"],
                "result": json.dumps(one["result"]),
                "facts": json.dumps(one["facts"]),
            }
            for one in runs
        ]
        with self.database:
            self.database.execute("BEGIN")
            changed = self.database.executemany(
                """
                INSERT INTO runs
                (key, version, configuration, state, owner, alive, finished, seconds, result, facts)
                VALUES (:key, :version, :configuration, 'done', :owner, :now, :now, :seconds, :result, :facts)
                ON CONFLICT (key) DO UPDATE
                SET state = 'done', owner = excluded.owner, finished = excluded.finished,
                    seconds = excluded.seconds, result = excluded.result, facts = excluded.facts, error = NULL
                WHERE state != 'done'
                """,
                rows,
            )
        return changed.rowcount if rows else 0

    def states(self, failed_before: float = 0.0) -> dict[str, str]:
        """The states of all runs by key; what :meth:`claim` would take is left out."""
        read = "SELECT key, state, alive, finished FROM runs"
        silent = time.time() - self.lease
        return {
            run_key: state
            for run_key, state, alive, finished in self.database.execute(read)
            if not (state == "running" and alive < silent)
            and not (state == "failed" and finished < failed_before)
        }

    def rows(self, keys: Iterable[str]) -> dict[str, Row]:
        """The rows that are there, by key, in the order of ``keys``."""
        found = {}
        for row in self.database.execute(
            "SELECT key, version, configuration, state, alive, seconds, result, facts, error FROM runs"
        ):
            found[row[0]] = row
        return {wanted: _row(found[wanted]) for wanted in keys if wanted in found}

    def others(self, version: str) -> int:
        """How many rows are of other versions of the package."""
        counted = self.database.execute("SELECT count(*) FROM runs WHERE version != ?", (version,))
        return counted.fetchone()[0]


def _row(values: tuple) -> Row:
    run_key, version, configuration, state, alive, seconds, result, facts, error = values
    return Row(
        run_key,
        version,
        json.loads(configuration),
        state,
        alive,
        seconds,
        json.loads(result or "{}"),
        json.loads(facts or "{}"),
        error,
    )


# ------------------------------------------------------------------------------------------ as files


def to_csv(rows: Iterable[Row]) -> str:
    """A table with a line for each run, its configuration and its results in columns."""
    flat = [row.flat() for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def to_json(rows: Iterable[Row], **about: Any) -> str:
    """The same for programs and for the book, with what is known ``about`` the sweep: one run a line.

    What is the same in all runs stands once, under ``shared``; facts are listed, each once, and a run has
    their place in that list.
    """
    rows = list(rows)
    parts = {"configuration": [row.configuration for row in rows], "result": [row.result for row in rows]}
    shared = {
        part: {
            name: value for name, value in mappings[0].items() if all(m.get(name) == value for m in mappings)
        }
        for part, mappings in parts.items()
        if mappings
    }
    facts: list[dict[str, Any]] = []
    for row in rows:
        if row.facts not in facts:
            facts.append(row.facts)
    lines = []
    for number, row in enumerate(rows):
        own = {
            part: {name: value for name, value in mappings[number].items() if name not in shared[part]}
            for part, mappings in parts.items()
        }
        lines.append(json.dumps({**own, "seconds": row.seconds, "facts": facts.index(row.facts)}))
    head = json.dumps({**about, "shared": shared, "facts": facts}, indent=1)
    return head[: -len("\n}")] + ',\n "runs": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def machines(stored: dict[str, Any]) -> str:
    """On what the runs of a sweep were done, in words; ``stored``: as :func:`from_json` gives it."""
    return " and ".join(sorted({facts.get("device", facts["processor"]) for facts in stored["facts"]}))


def from_json(text: str) -> dict[str, Any]:
    """What :func:`to_json` wrote, with what the runs share and their facts written out in each of them."""
    stored = json.loads(text)
    shared = stored.pop("shared", {})
    for run in stored["runs"]:
        for part in shared:
            run[part] = {**shared[part], **run[part]}
        run["facts"] = stored["facts"][run["facts"]]
    return stored
