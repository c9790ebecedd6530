-- Undoes an attempt, and refuses its later stores.
redis.call('HSET', register, attempt, 'undone')
if known and known ~= 'undone' then
    redis.call('ZREM', arrivals, known)
    show()
end
return redis.status_reply('OK')
