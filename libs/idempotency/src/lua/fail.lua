-- KEYS: operation. ARGV: prefix, token, message, id.
local operation = KEYS[1]
local found = redis.call('HMGET', operation, 'token', 'status', 'id')
if found[1] ~= ARGV[2] or found[2] ~= 'running' or found[3] ~= ARGV[4] then
    return 0
end
redis.call('HSET', operation, 'timeout_at', digits(server_time()))
fail(operation, ARGV[3])
return 1
