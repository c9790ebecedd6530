-- The beginnings of the mark and of a document.
local MARK = '^{"epoch":"(%x+)",("[op].+)}$'
local HEAD = '^{"epoch":"(%x+)","version_id":(%d+),"event_id":"(%w+)"'

-- Sets the mark, whatever memory is left. A script that has written something is not refused any more.
local function set_mark(key, text)
    if redis.pcall('SET', key, text).err then
        redis.call('DEL', key)
        redis.call('SET', key, text)
    end
end

-- The text of a mark, out of its epoch and its place in each partition.
local function mark_text(epoch, places)
    if #places == 1 then
        return '{"epoch":"' .. epoch .. '",' .. places[1] .. '}'
    end
    return '{"epoch":"' .. epoch .. '","partitions":[{' .. table.concat(places, '},{') .. '}]}'
end

-- The epoch of the mark, its offset in each partition, and the texts of these places. nil: there is no mark, or another program has
-- written it.
local function read_mark(key)
    local text = redis.call('GET', key) or ''
    local epoch, rest = text:match(MARK)
    local offsets, places = {}, {}
    for place, offset in (rest or ''):gmatch('("offset":(%d+),"token":%-?%d+)') do
        offsets[#offsets + 1], places[#places + 1] = tonumber(offset), place
    end
    if #places > 0 and mark_text(epoch, places) == text then
        return epoch, offsets, places
    end
end
