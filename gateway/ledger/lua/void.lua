-- Gives a hold back: nothing was sent, or what was sent was certainly not billed. No row.
--
-- KEYS  1 holds  2 drafts  3 counters  4 open  5 done  6 till   (as in settle.lua)
-- ARGV  1 hold id  2 clock (ms, 0: the server's)  3 how long to remember (ms)
-- Answer {1, (posted, held) of each counter drawn on}
--        {0, state}   resolved before, nothing changed
--        {2}          unknown: a tombstone is left, so that its reservation is refused when it comes late

local k = {
  holds = KEYS[1], drafts = KEYS[2], counters = KEYS[3],
  open = KEYS[4], done = KEYS[5], till = KEYS[6],
}
local id = ARGV[1]
local now = clock(ARGV[2])
local forget = now + whole(ARGV[3], 'time to remember')

local record = redis.call('HGET', k.holds, id)
if not record then
  redis.call('HSET', k.holds, id, 'V\n0')
  redis.call('ZADD', k.done, text(forget), id)
  return { 2 }
end
local hold = lines(record)
if not is_open(hold) then
  return { 0, hold[1] }
end
if not redis.call('ZSCORE', k.open, id) then
  error('BOOKS this hold belongs to another gateway')
end
return { 1, unpack(resolve(k, id, hold, 'V', '0', forget)) }
