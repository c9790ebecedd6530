-- The keys of every step: the register of the unit, the arrivals of its subject, the board.
-- The arguments of every step: the unit's key, the attempt, the number of the unit, the subject.
local register, arrivals, board = KEYS[1], KEYS[2], KEYS[3]
local key, attempt, uow, subject = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

-- Redis does not roll a failed script back. If a key is of another type, these reads fail, before anything is written.
local known = redis.call('HGET', register, attempt)
redis.call('ZCARD', arrivals)
redis.call('ZCARD', board)

-- Shows the count of the newest arrival of the subject.
local function show()
    local newest = redis.call('ZRANGE', arrivals, -1, -1)[1]
    if newest then
        redis.call('ZADD', board, string.match(newest, '%d+$'), subject)
    else
        redis.call('ZREM', board, subject)
    end
end

