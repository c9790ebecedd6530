-- The HTTP load on the container: wrk posts manifests of some 10 kB. After `--` it takes these optional arguments:
--   photo N    adds a photo of N bytes
--   rate N     posts N manifests per second; each connection waits for its next place in a timetable

wrk.method = "POST"

local BOUNDARY = "one-boundary"

-- A document that hardly compresses, as real ones hardly do.
local function document(ride_id)
    local passengers = {}
    for i = 1, 100 do
        local name = {}
        for part = 1, 11 do name[part] = string.format("%08x", math.random(0, 0x7fffffff)) end
        passengers[i] = '{"name":"' .. table.concat(name) .. '"}'
    end
    return string.format('{"ride_id":%d,"passengers":[%s]}', ride_id, table.concat(passengers, ","))
end

local function with_photo(document, photo)
    return table.concat({
        "--" .. BOUNDARY, 'content-disposition: form-data; name="manifest"', "", document,
        "--" .. BOUNDARY, 'content-disposition: form-data; name="photo"; filename="p.png"', "content-type: image/png", "",
        photo, "--" .. BOUNDARY .. "--", "" }, "\r\n")
end

local requests, turn = {}, 0

function init(args)
    math.randomseed(42)
    local photo
    for i, arg in ipairs(args) do
        if arg == "photo" then photo = string.rep("p", tonumber(args[i + 1])) end
        if arg == "rate" then delay = timetable(tonumber(args[i + 1])) end
    end
    wrk.headers["Content-Type"] = photo and "multipart/form-data; boundary=" .. BOUNDARY or "application/json"
    for i = 1, 1000 do
        local body = document(i)
        requests[i] = wrk.format(nil, nil, nil, photo and with_photo(body, photo) or body)
    end
end

function request()
    turn = turn % #requests + 1
    return requests[turn]
end
