-- Reads all budget definitions at one moment, unless the caller has them already.
--
-- KEYS  1 limits  2 defs   (as in set_budget.lua)
-- ARGV  1 epoch that the caller knows
-- Answer {clock of the server (ms), epoch} or {clock, epoch, limits, defs}

local now = clock('0')
local epoch = redis.call('HGET', KEYS[1], 'epoch') or ''
if epoch == ARGV[1] then
  return { now, epoch }
end
return { now, epoch, redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]) }
