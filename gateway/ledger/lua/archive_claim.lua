-- Makes the caller the one archiver, or keeps it that. A claim ends by itself when it is not renewed.
--
-- KEYS  1 claim    string: token of the archiver, with an expiry
-- ARGV  1 token  2 lease (ms)
-- Answer {1}: the caller is the archiver; {0, ms}: another one is, for so long unless it renews

local lease = whole(ARGV[2], 'lease')
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return { 0, redis.call('PTTL', KEYS[1]) }
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', lease)
return { 1 }
