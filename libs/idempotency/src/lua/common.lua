-- Operations in Redis: one hash per operation, and sorted sets that lead the sweepers to them. All scripts share this file.
--
--   <prefix>:{<target>}:<key>   hash, with the fields of tracked_operations; times in microseconds since 1970
--   <prefix>:timeouts           running operations by the time when their claims run out
--   <prefix>:expires:<status>   operations of a status by the time when they expire
--
-- Each key expires a day after the last operation in it: until then a sweeper can look at it. So nothing stays if no sweeper
-- runs. An operation without an expiration stays for ever, as its owner wanted it.

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

-- Removes the first entries of an index whose operations are gone. Each claim adds at most one entry.
local function prune(index)
    for _, operation in ipairs(redis.call('ZRANGE', index, 0, 4)) do
        if redis.call('EXISTS', operation) == 0 then
            redis.call('ZREM', index, operation)
        end
    end
end

-- Lets an operation and the indexes expire a day after the operation and its claim have expired.
local function keep(operation, status)
    local found = redis.call('HMGET', operation, 'timeout_at', 'expires_at')
    local last = math.max(tonumber(found[1]) or 0, tonumber(found[2]) or 0)
    local last_ms = digits(last / 1000 + 24 * 3600 * 1000)
    local indexes = {}
    if found[1] then
        table.insert(indexes, prefix .. ':timeouts')
    end
    if found[2] then
        table.insert(indexes, prefix .. ':expires:' .. status)
        redis.call('PEXPIREAT', operation, last_ms)
    else
        redis.call('PERSIST', operation)
    end
    for _, index in ipairs(indexes) do
        redis.call('PEXPIREAT', index, last_ms, 'NX')
        redis.call('PEXPIREAT', index, last_ms, 'GT')
    end
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
    keep(operation, status)
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
