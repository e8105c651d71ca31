-- How the books stand, at one moment: what a check compares.
--
-- KEYS  1 till  2 rows  3 holds  4 limits
-- ARGV  1 1: add up the open holds too (some milliseconds for ten thousand)
-- Answer {posted, held, id of the last row, sum of the open holds or -1, epoch}

local till = redis.call('HMGET', KEYS[1], 'posted', 'held')
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local open = -1
if ARGV[1] == '1' then
  open = 0
  for _, record in ipairs(redis.call('HVALS', KEYS[3])) do
    local hold = lines(record)
    if is_open(hold) then
      open = open + tonumber(hold[2])
    end
  end
end
return {
  tonumber(till[1] or '0'), tonumber(till[2] or '0'), last and last[1] or '0-0', open,
  redis.call('HGET', KEYS[4], 'epoch') or '',
}
