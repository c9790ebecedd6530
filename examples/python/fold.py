#!/usr/bin/env python3
"""Folds the log into the longest ride, without any of the project's code.

    DATABASE_URL=postgres://… REDIS_URL=redis://… python fold.py NAME [--drain | --register | --replay | --unregister]

The log has one or more partitions, each with offsets and a stream of its own. REDIS_URL is one server, or several nodes of a
Redis Cluster with commas between them.

The state of each partition is stored in the consumer's row of checkpoints for it, together with the offset that it reflects.
These rules keep it right when entries are sent twice, lost or forged, and when the process is killed:

- one UPDATE moves state and offset, and only from the offset and the generation that were read;
- entries at or below that offset are skipped: they were sent twice, or read again;
- an entry that does not carry the token of the batch at its offset is ignored, and so is one that cannot be read;
- the record of a missing entry is read from Postgres (log_records_after), which reads reaped records from the history;
- the row in checkpoints tells the reaper which records the consumer still needs.

The classes Consumer and Part know no fold. lengths.py is another fold, which writes rows into a table of its own.
"""

import argparse
import json
import os
import re
import sys
import time

import psycopg

from streams import Streams

PAGE_LEN = 1000
# The highest copy: XREAD goes on after every copy of the record at this offset.
LAST_COPY = 2**64 - 1
# How long a stream may be silent before Postgres is asked. An empty stream raises no error.
SILENCE_S = 1.0

# The statement of a commit. If the consumer was overtaken, it does nothing and returns no row.
MOVE = """
WITH moved AS (
    UPDATE checkpoints SET last_offset = %(new_offset)s, state = %(state)s, updated_at = now()
    WHERE name = %(name)s AND partition = %(partition)s AND last_offset = %(last_offset)s AND generation = %(generation)s
    RETURNING name, partition
), letters AS (
    INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason)
    SELECT moved.*, letter.*
    FROM moved, unnest(%(offsets)s::bigint[], %(objects)s::text[], %(actions)s::text[], %(data)s::text[],
                       %(reasons)s::text[]) AS letter
)
SELECT name FROM moved"""

# The tables whose rows Postgres would not delete together with the registration. A new consumer of the name would add to the
# rows of the old one.
UNBOUND = """
SELECT name FROM unnest(%s::text[]) AS name
WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass(name) AND confrelid = 'checkpoints'::regclass
                  AND contype = 'f' AND confdeltype = 'c')"""

# Whether a consumer that begins at the first record would miss one.
LACKS_RECORDS = """
SELECT EXISTS (
    SELECT FROM (SELECT max(first_offset + record_count - 1) AS last_reaped FROM log_batches
                 WHERE partition = %(partition)s AND reaped_at IS NOT NULL) AS reaped
    WHERE last_reaped > 0 AND NOT EXISTS (
        SELECT FROM history_ranges WHERE partition = %(partition)s AND first_offset = 1 AND last_offset >= last_reaped))"""


class Overtaken(Exception):
    """Another process of this name has moved the checkpoint, or a dead letter was replayed."""


class Rejected(Exception):
    """The record can never apply. It becomes a dead letter, with this reason."""


class Longest:
    """A fold with a state: the longest ride of a partition, and the number of rides."""

    # Both are stored with the registration. Raise the version when the state of the same records would be another today.
    NAME, VERSION = "longest", 1
    # The tables with the rows of each consumer. This fold has none.
    TABLES = []

    def __init__(self, state=None):
        self.value = state or {"ride_id": None, "distance_mm": 0, "ride_count": 0}

    def apply(self, about, data):
        """Folds one record. If it is rejected, the state is as before."""
        if about != ("ride", "create"):
            return
        ride = parse_ride(data)
        self.value["ride_count"] += 1
        if ride["distance_mm"] > self.value["distance_mm"]:
            self.value["ride_id"], self.value["distance_mm"] = ride["id"], ride["distance_mm"]

    def state(self):
        """Returns the state, at most 1500 bytes of JSON. None: the fold writes rows."""
        return self.value

    @staticmethod
    def total(folds):
        """Returns the result of all partitions in words."""
        values = [fold.value for fold in folds]
        longest = max(values, key=lambda value: value["distance_mm"])
        count = sum(value["ride_count"] for value in values)
        return f"longest of {count} rides: {longest['ride_id']}, {longest['distance_mm']} mm"

    def write(self, postgres, name, partition):
        """Writes the rows of the applied records, in the transaction that moves the checkpoint. This fold has none.

        It is also called when a consumer registers, with nothing applied: a missing table or privilege is found then.
        """


def parse_ride(data):
    """Returns the payload of `ride create`. All of its values fit into the columns of Postgres."""
    try:
        ride = json.loads(data)
        is_ride = 0 < ride["id"] < 2**63 and 0 < ride["distance_mm"] <= 10**12
        is_whole = type(ride["id"]) is int and type(ride["distance_mm"]) is int
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Rejected(f"data is not a ride: {error!r}") from error
    if not (is_ride and is_whole):
        raise Rejected("id or distance_mm is not a whole number within its bounds")
    return ride


def read_entry(fields):
    """Returns token, (object, action) and data of an entry. None: another program wrote it, or it is damaged."""
    try:
        token, staged_at_us, object_len, names = fields[b"about"].split(b" ", 3)
        token, _, object_len = (read_number(number) for number in (token, staged_at_us, object_len))
        # The length is in bytes, and not in characters.
        object_, space, action = names[:object_len], names[object_len : object_len + 1], names[object_len + 1 :]
        if object_len < 0 or space != b" ":
            return None
        return token, (object_.decode(), action.decode()), fields[b"data"].decode()
    except (KeyError, ValueError):
        return None


def read_number(text):
    """Returns a number of 64 bits. int() alone also reads `+1`, `1_0` and larger numbers."""
    number = int(text) if re.fullmatch(rb"-?[0-9]+", text) else 2**63
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{text} is no number of 64 bits")
    return number


class Consumer:
    """All partitions of one consumer."""

    def __init__(self, name, fold_type):
        self.name, self.fold_type = name, fold_type
        self.postgres = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
        # A transaction that waits for a lock must see what the holder has committed, whatever the default of the server is.
        self.postgres.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        self.streams = Streams(os.environ["REDIS_URL"])
        keys = "SELECT p, stream_key(p, %s) FROM generate_series(0, log_partitions() - 1) AS p"
        rows = self.postgres.execute(keys, [os.environ.get("STREAM_NAME", "rocket-rides-log")]).fetchall()
        self.parts = [Part(self, partition, key) for partition, key in rows]

    def register(self, anew=False):
        """Registers the consumer at offset 0 of each partition, if it is new. If that fails, nothing is registered.

        Postgres refuses a name that was unregistered, unless it is to be registered anew.
        """
        with self.postgres.transaction():
            if anew:
                self.postgres.execute("DELETE FROM unregistered_consumers WHERE name = %s", [self.name])
            # The reaper waits for this lock. Otherwise it could delete a record after this transaction has looked for it.
            self.postgres.execute("SELECT pg_advisory_xact_lock_shared(7306930022 # log_key())")
            for (table,) in self.postgres.execute(UNBOUND, [self.fold_type.TABLES]).fetchall():
                sys.exit(f"table {table} must exist and reference checkpoints ON DELETE CASCADE: nothing is registered")
            for part in self.parts:
                part.register()

    def run(self, is_draining):
        try:
            self.register()
        except psycopg.Error as error:
            if error.sqlstate != "UNREG":
                raise
            print(f"{error.diag.message_primary}: run {sys.argv[0]} {self.name} --register, then start it again", file=sys.stderr)
            # The status of a process that a supervisor does not start again.
            sys.exit(2)
        for part in self.parts:
            part.load()
        wait_ms = idle_ms = 1 if is_draining else 1000
        while True:
            after = {part.key: f"{part.last_offset}-{LAST_COPY}" for part in self.parts}
            entries = self.streams.read(after, PAGE_LEN, wait_ms)
            counts = [part.step(entries.get(part.key, []), is_draining) for part in self.parts]
            # A stream lacks the records that were read from Postgres, and perhaps the next ones. There is nothing to wait for.
            wait_ms = 1 if any(part.is_healing for part in self.parts) else idle_ms
            if is_draining and sum(counts) == 0:
                break
        print(self.fold_type.total([part.fold for part in self.parts]))

    def replay(self):
        """Folds the dead letters with the fold of today, in one transaction. Those that it still rejects stay."""
        with self.postgres.transaction():
            for part in self.parts:
                part.replay()

    def unregister(self):
        """Deletes the registration with its states. Dead letters and rows go with it, because they reference it."""
        if self.postgres.execute("DELETE FROM checkpoints WHERE name = %s", [self.name]).rowcount == 0:
            sys.exit(f"consumer {self.name} is not registered")
        print(f"consumer {self.name} is unregistered")


class Part:
    """A consumer in one partition: a checkpoint, and the state that goes with it."""

    def __init__(self, consumer, partition, key):
        self.name, self.fold_type, self.postgres = consumer.name, consumer.fold_type, consumer.postgres
        self.partition, self.key = partition, key
        # Whether the last records came from Postgres, and when the stream had something, or Postgres was asked.
        self.is_healing, self.looked_at = False, 0.0

    def register(self):
        register = """INSERT INTO checkpoints (name, partition, fold, fold_version, state) VALUES (%s, %s, %s, %s, %s)
                      ON CONFLICT DO NOTHING"""
        fold = self.fold_type()
        values = [self.name, self.partition, fold.NAME, fold.VERSION, to_json(fold.state())]
        if self.postgres.execute(register, values).rowcount == 1:
            # Otherwise the consumer would stop at a record that is gone, and hold back the reaper until it is unregistered.
            if self.postgres.execute(LACKS_RECORDS, {"partition": self.partition}).fetchone()[0]:
                sys.exit("records are reaped, and the history does not have all of them: nothing is registered")
            fold.write(self.postgres, self.name, self.partition)

    def load(self, lock=""):
        """Reads the committed offset and state."""
        find = """SELECT last_offset, generation, fold, fold_version, state FROM checkpoints
                  WHERE name = %s AND partition = %s """
        row = self.postgres.execute(find + lock, [self.name, self.partition]).fetchone()
        if row is None:
            sys.exit(f"consumer {self.name} is not registered")
        self.last_offset, self.generation, *registered, state = row
        own = [self.fold_type.NAME, self.fold_type.VERSION]
        if registered != own:
            sys.exit(
                f"consumer {self.name} is registered with fold {registered[0]} version {registered[1]}, and not with {own[0]} "
                f"version {own[1]}: start another name beside it, and --unregister {self.name} when the new one has caught up"
            )
        self.fold = self.fold_type(state)

    def step(self, entries, is_draining):
        """Folds the records that follow the checkpoint, at most a page. Returns how many."""
        records = self.records(entries)
        is_silent = time.monotonic() - self.looked_at > SILENCE_S
        may_lack = bool(entries) or is_silent or self.is_healing or is_draining
        self.is_healing = False
        if records or may_lack:
            self.looked_at = time.monotonic()
        if not records and may_lack:
            records = self.read_postgres()
            self.is_healing = bool(records)
        if records:
            try:
                self.commit(records)
            except Overtaken:
                self.load()
        return len(records)

    def records(self, entries):
        """Returns the records of entries, up to the first gap."""
        tokens = self.tokens(entries)
        records, next_offset = [], self.last_offset + 1
        for entry_id, fields in entries:
            offset = int(entry_id.split(b"-")[0])
            entry = read_entry(fields)
            if entry is None:
                continue
            token, about, data = entry
            is_ours = tokens.get(offset) == token
            if offset < next_offset or not is_ours:
                continue
            if offset > next_offset:
                break
            records.append((offset, about, data))
            next_offset += 1
        return records

    def tokens(self, entries):
        """Returns the token of the batch of each entry, by offset."""
        if not entries:
            return {}
        offsets = [int(entry_id.split(b"-")[0]) for entry_id, _ in entries]
        batches = self.postgres.execute(
            """SELECT first_offset, first_offset + record_count, token FROM log_batches
               WHERE partition = %(partition)s AND first_offset <= %(last)s
                 AND first_offset >= COALESCE((SELECT first_offset FROM log_batches
                                               WHERE partition = %(partition)s AND first_offset <= %(first)s
                                               ORDER BY first_offset DESC LIMIT 1), 0)""",
            {"partition": self.partition, "first": min(offsets), "last": max(offsets)},
        ).fetchall()
        return {offset: token for first, end, token in batches for offset in offsets if first <= offset < end}

    def read_postgres(self):
        """Reads the records that follow the checkpoint from Postgres, or from the history if they are reaped."""
        read = "SELECT record_offset, object, action, data::text FROM log_records_after(%s, %s, %s)"
        rows = self.postgres.execute(read, [self.last_offset, PAGE_LEN, self.partition]).fetchall()
        return [(offset, (about, action), data) for offset, about, action, data in rows]

    def commit(self, records):
        """Commits state, rows, dead letters and checkpoint in one transaction."""
        letters = []
        for offset, about, data in records:
            try:
                self.fold.apply(about, data)
            except Rejected as reason:
                letters.append((offset, *about, data, str(reason)))
        columns = zip(("offsets", "objects", "actions", "data", "reasons"), zip(*letters) if letters else [()] * 5)
        move = {name: list(column) for name, column in columns}
        move |= {"name": self.name, "partition": self.partition, "last_offset": self.last_offset, "generation": self.generation}
        move |= {"new_offset": records[-1][0], "state": to_json(self.fold.state())}
        with self.postgres.transaction():
            if self.postgres.execute(MOVE, move).fetchone() is None:
                raise Overtaken
            self.fold.write(self.postgres, self.name, self.partition)
        self.last_offset = records[-1][0]

    def replay(self):
        """Folds the dead letters again. The caller's transaction makes it whole.

        The lock keeps the consumer from committing meanwhile. The raised generation makes it load its state again, because
        the state in its memory lacks these records.
        """
        find = """SELECT record_offset, object, action, data FROM dead_letters
                  WHERE name = %s AND partition = %s AND dropped_at IS NULL ORDER BY record_offset LIMIT %s"""
        self.load("FOR UPDATE")
        # The first partition is not named: a log that is not cut has no other.
        place = f"{self.name} " if self.partition == 0 else f"{self.name} partition {self.partition} "
        for offset, object_, action, data in self.postgres.execute(find, [self.name, self.partition, PAGE_LEN]).fetchall():
            try:
                self.fold.apply((object_, action), data)
            except Rejected as reason:
                print(f"{place}{offset}: still rejected, and kept: {reason}")
                continue
            delete = "DELETE FROM dead_letters WHERE name = %s AND partition = %s AND record_offset = %s"
            self.postgres.execute(delete, [self.name, self.partition, offset])
            print(f"{place}{offset}: folded")
        self.fold.write(self.postgres, self.name, self.partition)
        save = "UPDATE checkpoints SET state = %s, generation = generation + 1 WHERE name = %s AND partition = %s"
        self.postgres.execute(save, [to_json(self.fold.state()), self.name, self.partition])


def to_json(state):
    return None if state is None else json.dumps(state)


def main(fold_type):
    parser = argparse.ArgumentParser()
    parser.add_argument("name", help="name of this consumer")
    commands = parser.add_mutually_exclusive_group()
    commands.add_argument("--drain", action="store_true", help="exit once nothing is left to read")
    commands.add_argument("--register", action="store_true", help="register the consumer, also if it was unregistered; then exit")
    commands.add_argument("--replay", action="store_true", help="fold the dead letters, as an operator; then exit")
    commands.add_argument("--unregister", action="store_true", help="delete the consumer with its state; then exit")
    args = parser.parse_args()
    consumer = Consumer(args.name, fold_type)
    if args.replay:
        consumer.replay()
    elif args.register:
        consumer.register(anew=True)
    elif args.unregister:
        consumer.unregister()
    else:
        consumer.run(args.drain)


if __name__ == "__main__":
    main(Longest)
