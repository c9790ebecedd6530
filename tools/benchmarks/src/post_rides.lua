-- The HTTP load: wrk posts rides of many distances. After `--` it takes these optional arguments:
--   count      counts 201, 503 with Retry-After, and all other responses; reading every response's header costs wrk time
--   rate N     posts N rides per second; each connection waits for its next place in a timetable
--   book       books rides, each with its own key
--   replay     books one ride again and again with the same key

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/x-www-form-urlencoded"

local requests, turn = {}, 0

local function book(key)
    local headers = { ["Authorization"] = "user@example.com", ["Idempotency-Key"] = key,
        ["Content-Type"] = "application/x-www-form-urlencoded" }
    local body = "origin_lat=52.52&origin_lon=13.405&target_lat=48.8566&target_lon=2.3522"
    return wrk.format(nil, nil, headers, body)
end

local function book_each()
    -- The prefix is new in each run, because no key may have been used before.
    local prefix, number = string.format("%d-%s", os.time(), tostring({})), 0
    return function()
        number = number + 1
        return book(string.format("%s-%012d", prefix, number))
    end
end

function init(args)
    math.randomseed(42)
    for i = 1, 1000 do
        local body = string.format("distance=%.3f", 5 + math.random() * 995)
        requests[i] = wrk.format(nil, nil, nil, body)
    end
    for i, arg in ipairs(args) do
        if arg == "count" then response = count end
        if arg == "book" then request = book_each() end
        if arg == "replay" then request = function() return book("the-same-key-every-time") end end
        if arg == "rate" then delay = timetable(tonumber(args[i + 1])) end
    end
end

function request()
    turn = turn % #requests + 1
    return requests[turn]
end
