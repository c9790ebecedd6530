#!/usr/bin/env python3
"""Checks that fold.py reads the entries of the stream as the test vectors say. It needs no server.

    python vectors.py

The tests of the project read the same file. Another reader can begin with it.
"""

import json
from pathlib import Path

from fold import read_entry

VECTORS = Path(__file__).parent / "../../libs/stream/vectors.json"


def to_bytes(value):
    """Returns a value of the file as Redis returns it."""
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value.encode()


def main():
    entries = json.loads(VECTORS.read_text(encoding="utf-8"))["entries"]
    for entry in entries:
        read = read_entry({name.encode(): to_bytes(value) for name, value in entry["fields"].items()})
        wanted = entry["reads_as"]
        if wanted is not None:
            wanted = wanted["token"], (wanted["object"], wanted["action"]), wanted["data"]
        assert read == wanted, f"{entry['id']}, {entry['what']}: {read} instead of {wanted}"
    print(f"{len(entries)} entries are read as they should be")


if __name__ == "__main__":
    main()
