-- The beginnings of the mark and of a document.
local MARK = '^{"epoch":"(%x+)","offset":(%d+),"token":%-?%d+}$'
local HEAD = '^{"epoch":"(%x+)","version_id":(%d+),"event_id":"(%w+)"'

-- Sets the mark, whatever memory is left. A script that has written something is not refused any more.
local function set_mark(key, text)
    if redis.pcall('SET', key, text).err then
        redis.call('DEL', key)
        redis.call('SET', key, text)
    end
end
