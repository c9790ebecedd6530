-- Replaces the mark if it still is of the expected epoch.
--
-- KEYS    the mark
-- ARGV    the expected epoch, or '' if there should be no mark; the new mark, or '' if there should be none from now on
-- Returns whether it was replaced: 1 or 0

if (read_mark(KEYS[1]) or '') ~= ARGV[1] then
    return 0
elseif ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
else
    set_mark(KEYS[1], ARGV[2])
end
return 1
