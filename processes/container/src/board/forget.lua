-- Forgets the register of a unit. If its arrival has stayed, the unit has committed: no older arrival will count again.
redis.call('DEL', register)
for _, arrival in ipairs(redis.call('ZRANGEBYSCORE', arrivals, uow, uow)) do
    if string.sub(arrival, 1, #key) == key then
        redis.call('ZREMRANGEBYSCORE', arrivals, '-inf', '(' .. uow)
    end
end
return redis.status_reply('OK')
