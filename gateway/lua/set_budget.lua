-- Defines a budget or changes its limit.
--
-- KEYS  1 limits  hash: epoch -> token that changes with every definition; serial -> number of the
--                 last change; budget id -> limit (nano-CNY)
--       2 defs    hash: budget id -> lines: generation, version, zone, created (ms)
-- ARGV  1 budget id "<period>|<scope>"  2 limit  3 zone  4 clock (ms, 0: the server's)  5 new epoch
-- Answer {version, 1 when a new count begins else 0}
--
-- The generation is part of every counter's name: it changes when a budget is made, made again after
-- a deletion, or moved to another zone, and counting then begins at nothing.

whole(ARGV[2], 'limit')
local now = clock(ARGV[4])
local old = redis.call('HGET', KEYS[2], ARGV[1])
local def = old and lines(old)
local fresh = not def or def[3] ~= ARGV[3]
if not fresh and redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  return { tonumber(def[2]), 0 } -- nothing changes, so nobody has to reload
end
local version = text(redis.call('HINCRBY', KEYS[1], 'serial', 1))
local generation, created = version, text(now)
if not fresh then
  generation, created = def[1], def[4]
end
redis.call('HSET', KEYS[2], ARGV[1], table.concat({ generation, version, ARGV[3], created }, '\n'))
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2], 'epoch', ARGV[5])
return { tonumber(version), fresh and 1 or 0 }
