-- Removes a budget. Holds that draw on it are settled as usual; its counter is dropped later.
--
-- KEYS  1 limits  2 defs  3 counters  4 audit  5 periods   (as in set_budget.lua)
-- ARGV  1 budget id  2 counter of the current period, or ''  3 drop time (ms)  4 new epoch  5 who
-- Answer 1: removed; 0: there was none

local old = redis.call('HGET', KEYS[2], ARGV[1])
if not old then
  return 0
end
local was = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local figures = { '0', '0' }
if ARGV[2] ~= '' then
  figures = redis.call('HMGET', KEYS[3], ARGV[2] .. '|p', ARGV[2] .. '|h')
  redis.call('ZADD', KEYS[5], ARGV[3], ARGV[2])
end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], 'epoch', ARGV[4])
redis.call('XADD', KEYS[4], '*', 'act', 'delete', 'who', ARGV[5], 'id', ARGV[1],
  'from', was .. '\n' .. old, 'to', '', 'p', figures[1] or '0', 'h', figures[2] or '0')
return 1
