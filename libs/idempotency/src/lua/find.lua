-- KEYS: operation. ARGV: prefix.
return { digits(server_time()), redis.call('HGETALL', KEYS[1]) }
