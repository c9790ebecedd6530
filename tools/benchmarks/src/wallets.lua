-- The HTTP load on wallets, each request for a random one. After `--` it takes what to ask for, and a file with the ids of the
-- wallets, one a line:
--   commands    credits and debits in turn, each with its own key
--   transfers   transfers to another random wallet, each with its own key
--   PATH        reads /wallet/<id>/PATH

-- Stands for the key and for the receiving wallet in the texts that are made once.
local KEY, TO = "________________________KEY", "_________________________TO"

local ids = {}

-- The text of a request, in pieces between the placeholders.
local function pieces(text)
    local first, key_last = text:find(KEY, 1, true)
    local to_first, last = text:find(TO, key_last, true)
    if not to_first then return text:sub(1, first - 1), text:sub(key_last + 1) end
    return text:sub(1, first - 1), text:sub(key_last + 1, to_first - 1), text:sub(last + 1)
end

-- Posts bodies to the paths of all wallets: those of the first action and those of the second in turn.
local function posting(actions, body)
    local headers = { ["Content-Type"] = "application/json", ["Idempotency-Key"] = KEY }
    local texts = {}
    for turn, action in ipairs(actions) do
        texts[turn] = {}
        for i, id in ipairs(ids) do
            texts[turn][i] = { pieces(wrk.format("POST", "/wallet/" .. id .. "/" .. action, headers, body)) }
        end
    end
    -- The prefix is new in each run, because no key may have been used before.
    local prefix, number = string.format("%d-%s", os.time(), tostring({}):sub(-8)), 0
    return function()
        number = number + 1
        local from = math.random(#ids)
        local text = texts[number % #texts + 1][from]
        local key = string.format("%s-%010d", prefix, number)
        if not text[3] then return text[1] .. key .. text[2] end
        local to = math.random(#ids - 1)
        return text[1] .. key .. text[2] .. ids[to < from and to or to + 1] .. text[3]
    end
end

local function reading(path)
    local texts = {}
    for i, id in ipairs(ids) do
        texts[i] = wrk.format("GET", "/wallet/" .. id .. "/" .. path)
    end
    return function() return texts[math.random(#texts)] end
end

function init(args)
    math.randomseed(42)
    for id in io.lines(args[2]) do
        table.insert(ids, id)
    end
    if args[1] == "commands" then
        request = posting({ "credit", "debit" }, '{"amount":5}')
    elseif args[1] == "transfers" then
        request = posting({ "transfer" }, '{"to":"' .. TO .. '","amount":5}')
    else
        request = reading(args[1])
    end
end
