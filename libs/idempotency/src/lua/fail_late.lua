-- KEYS: index. ARGV: prefix, message, how many at most.
local operations = late(KEYS[1], ARGV[3])
for _, operation in ipairs(operations) do
    fail(operation, ARGV[2])
end
return #operations
