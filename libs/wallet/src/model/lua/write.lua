-- Writes documents and, if asked, moves the mark in one partition. Redis runs all of it as one step.
--
-- KEYS    the mark; then one key per document
-- ARGV    the writer's epoch; then the partition (from 1 on), the bound, the offset and the token of a move, or '' four times
--         then per document: its text; and, if the text lacks older transactions, the version and the event that they end with,
--         or '' twice
-- Returns the outcome, and how many documents were written, kept because Redis has a newer one,
--         and deleted or not stored

local epoch, partition, bound, offset, token = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local TRANSACTION_COUNT_MAX = 20

local written, kept, deleted, is_full = 0, 0, 0, false

local function delete(key)
    deleted = deleted + redis.call('DEL', key)
end

-- Refused: memory is full. An older document must not stay, and later ones would only be taken because this script has
-- written something by then.
local function set(key, text)
    is_full = is_full or redis.pcall('SET', key, text).err ~= nil
    if is_full then
        redis.call('DEL', key)
        deleted = deleted + 1
    else
        written = written + 1
    end
end

-- A text with some transactions, and behind them those of the older text that still fit. nil: the older text is foreign.
local function join(text, count, older)
    local _, start = older:find('"transactions":[{', 1, true)
    if not start or older:sub(-4) ~= '}]}}' then
        return nil
    end
    local stop = start
    for _ = count + 1, TRANSACTION_COUNT_MAX do
        stop = older:find('},{', stop + 1, true)
        if not stop then
            return text:sub(1, -4) .. ',' .. older:sub(start)
        end
    end
    return text:sub(1, -4) .. ',' .. older:sub(start, stop) .. ']}}'
end

local mark_epoch, offsets, places = read_mark(KEYS[1])
local mark_offset = offsets and offsets[partition]
-- The timeline of this writer may be gone. Its documents are not written; and those that it knows to be outdated are
-- deleted, because a document that is missing is never wrong. A mark without this partition is of another log.
if mark_epoch ~= epoch or partition and not mark_offset then
    for place = 2, #KEYS do
        delete(KEYS[place])
    end
    return {'refused', written, kept, deleted}
end
-- Redis has lost its newest writes: the log's Postgres knows that the mark was further on.
if partition and mark_offset < tonumber(bound) then
    return {'behind', written, kept, deleted}
end

for place = 2, #KEYS do
    local key = KEYS[place]
    local text, after_version, after_event = unpack(ARGV, 3 * place, 3 * place + 2)
    local _, version, event = text:match(HEAD)
    version, after_version = tonumber(version), tonumber(after_version)
    local is_whole = not after_version
    -- To look at the version, the beginning is enough.
    local older = is_whole and redis.pcall('GETRANGE', key, 0, 127) or redis.pcall('GET', key)
    local held_epoch, held_version, held_event
    if type(older) == 'string' then
        held_epoch, held_version, held_event = older:match(HEAD)
        held_version = tonumber(held_version)
    end
    local is_held = held_epoch == epoch
    -- Two events have one version: Postgres was put back. The mark goes, so that no document is believed until the projector has
    -- begun a new epoch.
    if is_held and (held_version == version and held_event ~= event
                    or held_version == after_version and held_event ~= after_event) then
        redis.call('DEL', KEYS[1])
        return {'conflict', written, kept, deleted}
    end
    if is_held and (held_version > version or held_version == version and not is_whole) then
        kept = kept + 1
    else
        if not is_whole then
            text = is_held and held_version == after_version and join(text, version - after_version, older)
        end
        if text then
            set(key, text)
        else
            delete(key)
        end
    end
end

if partition and tonumber(offset) > mark_offset then
    places[partition] = string.format('"offset":%s,"token":%s', offset, token)
    set_mark(KEYS[1], mark_text(epoch, places))
end
return {'done', written, kept, deleted}
