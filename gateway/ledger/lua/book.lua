-- Books what a gateway has spooled on its disk while there was no server: money that is spent already,
-- so no limit is looked at.
--
-- KEYS  1 spools    hash: spool -> number of its last entry that is booked
--       2 counters  3 till  4 rows  5 periods   (as in settle.lua and reserve.lua)
-- ARGV  1 spool  2 number of the entry  3 amount  4 row  5 x: nobody settled it, else ''
--       row '': the attempt was void and only takes its number
--       then for each counter: its name, drop time (ms; 0: never)
-- Answer 1: booked; 0: it was booked before

local number = whole(ARGV[2], 'number')
local last = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
whole(ARGV[3], 'amount')
if number <= last then
  return 0
end
if number > last + 1 then
  error('BOOKS an entry of the spool is missing')
end
for i = 6, #ARGV, 2 do
  if redis.call('HSETNX', KEYS[2], ARGV[i] .. '|h', '0') == 1 and ARGV[i + 1] ~= '0' then
    redis.call('ZADD', KEYS[5], ARGV[i + 1], ARGV[i])
  end
  redis.call('HINCRBY', KEYS[2], ARGV[i] .. '|p', ARGV[3])
end
redis.call('HINCRBY', KEYS[3], 'posted', ARGV[3])
if ARGV[5] == 'x' then
  redis.call('XADD', KEYS[4], '*', 'p', ARGV[3], 'h', ARGV[3], 'r', ARGV[4], 's', 'x')
elseif ARGV[4] ~= '' then
  redis.call('XADD', KEYS[4], '*', 'p', ARGV[3], 'h', ARGV[3], 'r', ARGV[4])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
