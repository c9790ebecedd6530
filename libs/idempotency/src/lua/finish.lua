-- KEYS: operation. ARGV: prefix, token, result, the error message if it has expired, id.
local operation, now = KEYS[1], server_time()
local found = redis.call('HMGET', operation, 'token', 'status', 'expires_at', 'id')
if found[1] ~= ARGV[2] or found[2] ~= 'running' or found[4] ~= ARGV[5] then
    return 'fenced'
end
if has_passed(found[3], now) then
    fail(operation, ARGV[4])
    return 'expired'
end
redis.call('HSET', operation, 'result', ARGV[3], 'recovery_point', 'finished', 'finished_at', digits(now))
redis.call('HDEL', operation, 'error_message')
enter(operation, 'finished')
return 'finished'
