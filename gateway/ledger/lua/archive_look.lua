-- What has to add up, at one moment: the till, and how far the archive is.
--
-- KEYS  1 till  2 archive  3 rows   (as in settle.lua and archive_plan.lua)
-- Answer {posted, last row in the stream or '', (field, value) of the archive ...}

local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
local answer = { redis.call('HGET', KEYS[1], 'posted') or '0', last[1] and last[1][1] or '' }
for _, part in ipairs(redis.call('HGETALL', KEYS[2])) do
  answer[#answer + 1] = part
end
return answer
