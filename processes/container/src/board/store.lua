-- Stores an attempt. Its fifth argument is the count. Returns 0 if the attempt has been undone.
if known == 'undone' then
    return 0
end
local arrival = key .. '.' .. attempt .. '.' .. ARGV[5]
redis.call('HSET', register, attempt, arrival)
redis.call('ZADD', arrivals, uow, arrival)
show()
return 1
