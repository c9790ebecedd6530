-- KEYS: operation. ARGV: prefix, target, key, payload, reference time, time-out, expiration (microseconds, or empty).
local operation, now = KEYS[1], server_time()
local found = redis.call('HMGET', operation, 'status', 'payload', 'timeout_at', 'expires_at', 'result')
local status = found[1]

if not status then
    -- A reference time in the future is cut, because a client could put off the expiration by it.
    local reference_time = math.min(tonumber(ARGV[5]) or now, now)
    local expiration = tonumber(ARGV[7])
    if expiration and reference_time + expiration <= now then
        return { 'expired' }
    end
    -- If Redis has evicted an operation of this name, its index entries must not lead the sweepers to this one.
    for _, old in ipairs({ 'running', 'failed', 'finished' }) do
        redis.call('ZREM', prefix .. ':expires:' .. old, operation)
    end
    for _, index in ipairs({ ':timeouts', ':expires:running', ':expires:failed', ':expires:finished' }) do
        prune(prefix .. index)
    end
    -- The id tells this operation from an evicted one of the same name.
    redis.call('HSET', operation, 'id', digits(now), 'target', ARGV[2], 'key', ARGV[3],
        'payload', ARGV[4], 'recovery_point', 'started', 'token', 0, 'error_count', 0,
        'reference_time', digits(reference_time), 'created_at', digits(now))
    if expiration then
        redis.call('HSET', operation, 'expires_at', digits(reference_time + expiration))
    end
else
    if found[2] ~= ARGV[4] then
        return { 'mismatch' }
    end
    if status == 'finished' then
        return { 'finished', found[5] }
    end
    if has_passed(found[4], now) then
        return { 'expired' }
    end
    if status == 'running' and not has_passed(found[3], now) then
        return { 'running', found[3] and digits(found[3] - now) or '' }
    end
end

redis.call('HINCRBY', operation, 'token', 1)
redis.call('HSET', operation, 'started_at', digits(now))
if ARGV[6] == '' then
    redis.call('HDEL', operation, 'timeout_at')
else
    redis.call('HSET', operation, 'timeout_at', digits(now + ARGV[6]))
end
enter(operation, 'running')
local claimed = redis.call('HMGET', operation, 'id', 'token', 'recovery_point')
return { 'mine', claimed[1], claimed[2], claimed[3], status or 'ready' }
