#!/usr/bin/env python3
"""Folds the log into the longest ride, without any of the project's code.

    DATABASE_URL=postgres://… REDIS_URL=redis://… python fold.py NAME [--drain]

These rules keep the result right when entries are sent twice, lost or forged, and when the process is killed:

- it keeps one offset in the same transaction as its state, and moves it only from the offset that it has read;
- it skips entries at or below that offset, which were sent twice or read again;
- it ignores an entry that does not carry the token of the batch at its offset;
- it reads the record of a missing entry from Postgres (log_records_after);
- its row in checkpoints tells the reaper which records it still needs.
"""

import json
import os
import sys

import psycopg
import redis

PAGE_LEN = 1000
# The highest copy: XREAD goes on after every copy of the record at this offset.
LAST_COPY = 2**64 - 1

SETUP = """
CREATE TABLE IF NOT EXISTS longest_rides (
    name        TEXT   NOT NULL PRIMARY KEY,
    ride_id     BIGINT,
    distance_mm BIGINT NOT NULL DEFAULT 0,
    ride_count  BIGINT NOT NULL DEFAULT 0
)"""


class Overtaken(Exception):
    """Another process of this name has moved the checkpoint."""


class Longest:
    """The state: the longest ride, and the number of rides."""

    def __init__(self, ride_id, distance_mm, ride_count):
        self.ride_id, self.distance_mm, self.ride_count = ride_id, distance_mm, ride_count

    def apply(self, about, data):
        if about != ("ride", "create"):
            return
        ride = json.loads(data)
        self.ride_count += 1
        if ride["distance_mm"] > self.distance_mm:
            self.ride_id, self.distance_mm = ride["id"], ride["distance_mm"]


class Consumer:
    def __init__(self, name):
        self.name = name
        self.stream_name = os.environ.get("STREAM_NAME", "rocket-rides-log")
        self.postgres = psycopg.connect(os.environ["DATABASE_URL"])
        # redis-py calls the scheme of unix sockets `unix`.
        self.redis = redis.Redis.from_url(os.environ["REDIS_URL"].replace("redis+unix:", "unix:"), protocol=2)

    def load(self):
        """Registers the consumer, and reads its committed offset and state."""
        with self.postgres.transaction():
            self.postgres.execute(SETUP)
            register = "INSERT INTO checkpoints (name) VALUES (%s) ON CONFLICT DO NOTHING"
            self.postgres.execute(register, [self.name])
            self.postgres.execute("INSERT INTO longest_rides (name) VALUES (%s) ON CONFLICT DO NOTHING", [self.name])
            find = "SELECT last_offset FROM checkpoints WHERE name = %s AND partition = 0"
            self.last_offset = self.postgres.execute(find, [self.name]).fetchone()[0]
            find = "SELECT ride_id, distance_mm, ride_count FROM longest_rides WHERE name = %s"
            self.state = Longest(*self.postgres.execute(find, [self.name]).fetchone())

    def read_stream(self):
        """Reads the records that follow the checkpoint from the stream, up to the first gap."""
        after = f"{self.last_offset}-{LAST_COPY}"
        try:
            reply = self.redis.xread({self.stream_name: after}, count=PAGE_LEN, block=1000)
        except redis.RedisError as error:
            print(f"reading on from Postgres: {error}", file=sys.stderr)
            return []
        entries = [entry for _, of_stream in reply or [] for entry in of_stream]
        tokens = self.tokens(entries)
        records, next_offset = [], self.last_offset + 1
        for entry_id, fields in entries:
            offset = int(entry_id.split(b"-")[0])
            try:
                token, _staged_at_us, object_len, what = fields[b"about"].split(b" ", 3)
                is_ours = tokens.get(offset) == int(token)
                about = (what[: int(object_len)].decode(), what[int(object_len) + 1 :].decode())
                data = fields[b"data"]
            except (KeyError, ValueError):
                # Another program wrote this entry.
                continue
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
               WHERE partition = 0 AND first_offset <= %(last)s AND first_offset + record_count > %(first)s""",
            {"first": min(offsets), "last": max(offsets)},
        ).fetchall()
        self.postgres.commit()
        return {offset: token for first, end, token in batches for offset in offsets if first <= offset < end}

    def read_postgres(self):
        """Reads the records that follow the checkpoint from Postgres, which keeps each record until every consumer has it."""
        read = "SELECT record_offset, object, action, data::text FROM log_records_after(%s, %s)"
        rows = self.postgres.execute(read, [self.last_offset, PAGE_LEN]).fetchall()
        self.postgres.commit()
        return [(offset, (about, action), data) for offset, about, action, data in rows]

    def commit(self, records):
        """Commits state and checkpoint in one transaction."""
        for _, about, data in records:
            self.state.apply(about, data)
        with self.postgres.transaction():
            move = """UPDATE checkpoints SET last_offset = %s, updated_at = now()
                      WHERE name = %s AND partition = 0 AND last_offset = %s"""
            if self.postgres.execute(move, [records[-1][0], self.name, self.last_offset]).rowcount != 1:
                raise Overtaken
            save = "UPDATE longest_rides SET ride_id = %s, distance_mm = %s, ride_count = %s WHERE name = %s"
            state = self.state
            self.postgres.execute(save, [state.ride_id, state.distance_mm, state.ride_count, self.name])
        self.last_offset = records[-1][0]

    def run(self, is_draining):
        self.load()
        while True:
            records = self.read_stream() or self.read_postgres()
            if records:
                try:
                    self.commit(records)
                except Overtaken:
                    self.load()
            elif is_draining:
                break
        print(f"longest of {self.state.ride_count} rides: {self.state.ride_id}, {self.state.distance_mm} mm")


if __name__ == "__main__":
    Consumer(sys.argv[1]).run("--drain" in sys.argv[2:])
