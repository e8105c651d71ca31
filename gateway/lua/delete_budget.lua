-- Removes a budget. Holds that draw on it are settled as usual; its counter is dropped later.
--
-- KEYS  1 limits  2 defs   (as in set_budget.lua)
--       3 periods  zset: counter by the time after which it may be dropped
-- ARGV  1 budget id  2 counter of the current period, or ''  3 drop time (ms)  4 new epoch
-- Answer 1: removed; 0: there was none

if redis.call('HDEL', KEYS[2], ARGV[1]) == 0 then
  return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], 'epoch', ARGV[4])
if ARGV[2] ~= '' then
  redis.call('ZADD', KEYS[3], ARGV[3], ARGV[2])
end
return 1
