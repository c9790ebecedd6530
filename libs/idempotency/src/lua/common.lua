-- Operations in Redis: one hash per operation, and sorted sets that lead the sweepers to them. All scripts share this file.
--
--   <prefix>:{<target>}:<key>   hash, with the fields of tracked_operations; times in microseconds since 1970
--   <prefix>:timeouts           running operations by the time when their claims run out
--   <prefix>:expires:<status>   operations of a status by the time when they expire
--   <prefix>:last_id            the id that was given last

local prefix = ARGV[1]

local function server_time()
    local time = redis.call('TIME')
    return time[1] * 1000000 + time[2]
end

-- A number as text without an exponent.
local function digits(number)
    return string.format('%.0f', number)
end

-- Whether a point in time from a hash has passed.
local function has_passed(time, now)
    return time and tonumber(time) <= now
end

-- Sets the status of an operation, and updates both indexes.
local function enter(operation, status)
    local found = redis.call('HMGET', operation, 'status', 'timeout_at', 'expires_at')
    if found[1] then
        redis.call('ZREM', prefix .. ':expires:' .. found[1], operation)
    end
    if found[3] then
        redis.call('ZADD', prefix .. ':expires:' .. status, found[3], operation)
    end
    if status == 'running' and found[2] then
        redis.call('ZADD', prefix .. ':timeouts', found[2], operation)
    else
        redis.call('ZREM', prefix .. ':timeouts', operation)
    end
    redis.call('HSET', operation, 'status', status)
end

-- Marks an operation as failed, so that it can be claimed again.
local function fail(operation, message)
    redis.call('HINCRBY', operation, 'error_count', 1)
    redis.call('HSET', operation, 'error_message', message)
    enter(operation, 'failed')
end

-- The first operations of an index whose time has come. If the hash of an operation is gone, its entry is removed.
local function late(index, count_max)
    local operations = {}
    local time = digits(server_time())
    for _, operation in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', time, 'LIMIT', 0, count_max)) do
        if redis.call('EXISTS', operation) == 1 then
            table.insert(operations, operation)
        else
            redis.call('ZREM', index, operation)
        end
    end
    return operations
end
