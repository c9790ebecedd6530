"""The partition of a key, and the key of a partition's stream, as the project computes them. It needs no server.

In SQL the functions partition_of(key) and stream_key(partition, stream_name) return the same, for the log that they belong to.
"""

import hashlib
from binascii import crc_hqx
from itertools import count

# The hash slots of a Redis Cluster.
SLOT_COUNT = 16384


def partition_of(key, partition_count):
    """Returns the partition of a key: the first 32 bits of its MD5, modulo the number of partitions."""
    return int.from_bytes(hashlib.md5(key.encode()).digest()[:4], "big") % partition_count


def stream_key(partition, stream_name, log_id):
    """Returns the key of a partition's stream. `log_id` is log_identity.log_id: None if the log was made without a number."""
    if log_id is not None:
        return f"{stream_name}:{log_id}:{{{tag(partition)}}}"
    return stream_name if partition == 0 else f"{stream_name}:{{{partition}}}"


def tag(partition):
    """Returns the number that puts a stream on its node: the smallest whose slot is in the middle of the partition's range.

    The ranges are taken in the order of their numbers with the six bits reversed. So the first partitions of any number are
    spread evenly over the nodes.
    """
    middle = int(f"{partition:06b}"[::-1], 2) * 256 + 128
    # The function of binascii is the CRC16 of a Redis Cluster.
    return next(number for number in count() if -32 <= crc_hqx(str(number).encode(), 0) % SLOT_COUNT - middle < 32)
