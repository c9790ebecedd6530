-- KEYS: index. ARGV: prefix, how many at most.
local operations = late(KEYS[1], ARGV[2])
for _, operation in ipairs(operations) do
    redis.call('DEL', operation)
    redis.call('ZREM', KEYS[1], operation)
    redis.call('ZREM', prefix .. ':timeouts', operation)
end
return #operations
