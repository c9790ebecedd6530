#!/usr/bin/env python3
"""Counts the rides of each length: a fold that writes rows, on the loop of fold.py.

    psql "$DATABASE_URL" -f lengths.sql
    DATABASE_URL=postgres://… REDIS_URL=redis://… python lengths.py NAME [--drain | --register | --replay | --unregister]
"""

from collections import Counter

from fold import main, parse_ride

STEP_MM = 100_000


class Lengths:
    """It collects the rides of a page. The counts themselves stay in the table, apart for each partition."""

    NAME, VERSION = "lengths", 1
    TABLES = ["ride_lengths"]

    def __init__(self, state=None):
        self.counts = Counter()

    def apply(self, about, data):
        if about == ("ride", "create"):
            self.counts[parse_ride(data)["distance_mm"] // STEP_MM * 100] += 1

    def state(self):
        return None

    def write(self, postgres, name, partition):
        add = """INSERT INTO ride_lengths (name, partition, metres, ride_count)
                 SELECT %s, %s, * FROM unnest(%s::bigint[], %s::bigint[])
                 ON CONFLICT (name, partition, metres) DO UPDATE SET ride_count = ride_lengths.ride_count + excluded.ride_count"""
        postgres.execute(add, [name, partition, list(self.counts.keys()), list(self.counts.values())])
        self.counts.clear()

    @staticmethod
    def total(folds):
        return "lengths noted"


if __name__ == "__main__":
    main(Lengths)
