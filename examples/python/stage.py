#!/usr/bin/env python3
"""Writes rides, each with its log record in the same transaction.

    DATABASE_URL=postgres://… python stage.py 12.5 7
"""

import json
import os
import sys

import psycopg


def main() -> None:
    with psycopg.connect(os.environ["DATABASE_URL"]) as postgres:
        for metres in sys.argv[1:]:
            distance_mm = round(float(metres) * 1000)
            # One transaction: the ride and its record, or neither.
            with postgres.transaction():
                insert = "INSERT INTO rides (distance_mm) VALUES (%s) RETURNING id"
                ride_id = postgres.execute(insert, [distance_mm]).fetchone()[0]
                # The records of a key are in one partition, in the order of their commits.
                stage = """INSERT INTO staged_log_records (partition, object, action, data)
                           VALUES (partition_of(%s), 'ride', 'create', %s)"""
                postgres.execute(stage, [str(ride_id), json.dumps({"id": ride_id, "distance_mm": distance_mm})])
            print(f"ride {ride_id}: {distance_mm} mm")


if __name__ == "__main__":
    main()
