"""Reads the streams of the log: from one Redis server, or from a Redis Cluster, where each stream is on some node."""

import sys
import time

import redis
import redis.cluster

# How long a node of a cluster may take to answer.
NODE_WAIT_S = 1
# The pause after an error, and between two looks at a cluster that has nothing new.
PAUSE_MS = 50
# The errors of a server or of all nodes. The second is no RedisError.
AWAY = (redis.RedisError, redis.exceptions.RedisClusterException)


class Streams:
    def __init__(self, urls):
        """`urls` is one server, or several nodes of a cluster with commas between them."""
        # redis-py calls the scheme of unix sockets `unix`.
        self.urls = [url.strip().replace("redis+unix:", "unix:") for url in urls.split(",")]
        self.redis = None

    def read(self, after, page_len, wait_ms):
        """Returns the entries that follow an id in each stream, by key, at most a page of each. Streams without any are left out.

        A server is asked for all streams at once, and waits until one has something. In a cluster each stream is asked for by
        itself, so a node that is away holds back no other for long.
        """
        if len(self.urls) == 1:
            return self.read_some(after, page_len, wait_ms)
        entries = {}
        for key, last_id in after.items():
            entries |= self.read_some({key: last_id}, page_len, None)
        if not entries:
            time.sleep(min(wait_ms, PAUSE_MS) / 1000)
        return entries

    def read_some(self, after, page_len, wait_ms):
        try:
            self.redis = self.redis or self.connect()
            reply = self.redis.xread(after, count=page_len, block=wait_ms)
        except (*AWAY, OSError) as error:
            print(f"reading on from Postgres: {error}", file=sys.stderr)
            time.sleep(min(wait_ms or 0, PAUSE_MS) / 1000)
            return {}
        return {key.decode(): entries for key, entries in reply or []}

    def connect(self):
        """Connects when first used. A cluster is entered at the first node that answers, and follows its changes from then on."""
        if len(self.urls) == 1:
            return redis.Redis.from_url(self.urls[0], protocol=2)
        for url in self.urls[:-1]:
            try:
                return redis.cluster.RedisCluster.from_url(url, protocol=2, socket_timeout=NODE_WAIT_S)
            except AWAY as error:
                print(f"asking another node: {error}", file=sys.stderr)
        return redis.cluster.RedisCluster.from_url(self.urls[-1], protocol=2, socket_timeout=NODE_WAIT_S)
