-- The end of every script for wrk. It prints one line:
--   RESULT requests errors socket_errors microseconds p50 p99 mean status_201 status_503_retry other   (times in us)
-- The last three are counted if a script sets `response = count`.

local threads = {}
status_201, status_503_retry, status_other = 0, 0, 0

function setup(thread)
    table.insert(threads, thread)
end

function count(status, headers)
    if status == 201 then
        status_201 = status_201 + 1
    elseif status == 503 and (headers["retry-after"] or headers["Retry-After"]) then
        status_503_retry = status_503_retry + 1
    else
        status_other = status_other + 1
    end
end

function done(summary, latency)
    local ok, refused, other = 0, 0, 0
    for _, thread in ipairs(threads) do
        ok = ok + thread:get("status_201")
        refused = refused + thread:get("status_503_retry")
        other = other + thread:get("status_other")
    end
    local e = summary.errors
    io.write(string.format("RESULT %d %d %d %d %d %d %.1f %d %d %d\n",
        summary.requests, e.status, e.connect + e.read + e.write + e.timeout, summary.duration,
        latency:percentile(50), latency:percentile(99), latency.mean, ok, refused, other))
end
