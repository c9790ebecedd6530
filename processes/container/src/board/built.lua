-- Marks the board as built by this server, unless Redis has forgotten the witness of the rebuild.
if redis.call('DEL', KEYS[1]) == 0 then
    return 0
end
redis.call('SET', KEYS[2], ARGV[1])
return 1
