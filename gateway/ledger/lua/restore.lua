-- After a failover: puts back an open hold that the new server has never heard of. No limit is looked
-- at, because the request is on its way already.
--
-- KEYS  1 holds  2 drafts  3 counters  4 open  5 till  6 owners  7 periods   (as in reserve.lua)
-- ARGV  1 hold id  2 amount  3 state P|S  4 time to live (ms)  5 draft  6 owner  7 lease (ms)
--       8 clock (ms, 0: the server's)   then for each counter: its name, drop time (ms; 0: never)
-- Answer 1: it is back; 0: the server knows it, open or resolved

local id = ARGV[1]
local amount = whole(ARGV[2], 'amount')
local now = clock(ARGV[8])
local ends = now + whole(ARGV[4], 'time to live')
local lease = now + whole(ARGV[7], 'lease')
if redis.call('HEXISTS', KEYS[1], id) == 1 then
  return 0
end
local record = ARGV[3] .. '\n' .. ARGV[2]
if amount > 0 then
  for i = 9, #ARGV, 2 do
    record = record .. '\n' .. ARGV[i]
    if redis.call('HSETNX', KEYS[3], ARGV[i] .. '|p', '0') == 1 and ARGV[i + 1] ~= '0' then
      redis.call('ZADD', KEYS[7], ARGV[i + 1], ARGV[i])
    end
    redis.call('HINCRBY', KEYS[3], ARGV[i] .. '|h', ARGV[2])
  end
end
redis.call('HINCRBY', KEYS[5], 'held', ARGV[2])
redis.call('HSET', KEYS[1], id, record)
redis.call('HSET', KEYS[2], id, ARGV[5])
redis.call('ZADD', KEYS[4], text(ends), id)
redis.call('ZADD', KEYS[6], text(lease), ARGV[6])
return 1
