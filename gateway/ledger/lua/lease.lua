-- Renews the lease of a gateway process, or ends it (lease 0): its open holds are then swept at once.
--
-- KEYS  1 owners  zset: gateway process by the end of its lease
-- ARGV  1 owner  2 lease (ms)  3 clock (ms, 0: the server's)
-- Answer 1

local lease = whole(ARGV[2], 'lease')
local ends = 0
if lease > 0 then
  ends = clock(ARGV[3]) + lease
end
redis.call('ZADD', KEYS[1], text(ends), ARGV[1])
return 1
