-- A load of N requests per second: each connection waits for its next place in a timetable.

local function timetable(rate)
    local ffi = require("ffi")
    ffi.cdef("typedef struct { long s; long ns; } bench_time; int clock_gettime(int, bench_time *);")
    local at, start, place = ffi.new("bench_time[1]"), nil, 0
    return function()
        ffi.C.clock_gettime(1, at)
        local now_ms = tonumber(at[0].s) * 1000 + tonumber(at[0].ns) / 1e6
        start = start or now_ms
        place = place + 1
        -- Times are absolute: the connections catch up after a slow response.
        return math.max(0, math.floor(start + place * 1000 / rate - now_ms))
    end
end
