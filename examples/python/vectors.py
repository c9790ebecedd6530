#!/usr/bin/env python3
"""Checks that fold.py and partitions.py compute what the test vectors say. It needs no server.

    python vectors.py

The tests of the project read the same file. Another reader can begin with it.
"""

import json
from pathlib import Path

from fold import read_entry
from partitions import partition_of, stream_key

VECTORS = Path(__file__).parent / "../../libs/stream/vectors.json"


def to_bytes(value):
    """Returns a value of the file as Redis returns it."""
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value.encode()


def main():
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    entries = vectors["entries"]
    for entry in entries:
        read = read_entry({name.encode(): to_bytes(value) for name, value in entry["fields"].items()})
        wanted = entry["reads_as"]
        if wanted is not None:
            wanted = wanted["token"], (wanted["object"], wanted["action"]), wanted["data"]
        assert read == wanted, f"{entry['id']}, {entry['what']}: {read} instead of {wanted}"
    for vector in vectors["partitions"]:
        for partition_count, wanted in vector["of"].items():
            assert partition_of(vector["key"], int(partition_count)) == wanted, (vector, partition_count)
    for vector in vectors["stream_keys"]:
        assert stream_key(vector["partition"], vector["name"], vector["log_id"]) == vector["key"], vector
    print(f"{len(entries)} entries are read as they should be, and {len(vectors['partitions'])} keys have their partitions")


if __name__ == "__main__":
    main()
