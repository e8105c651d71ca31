-- Says that the request of a hold is about to be sent: from here on it may have been billed.
--
-- KEYS  1 holds  hash: hold id -> record (see common.lua)
-- ARGV  1 hold id
-- Answer 1: the hold is open and marked (also when it was marked before); 0: it must not be sent.

local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then
  return 0
end
local state = string.sub(record, 1, 1)
if state == 'P' then
  redis.call('HSET', KEYS[1], ARGV[1], 'S' .. string.sub(record, 2))
  return 1
end
return state == 'S' and 1 or 0
