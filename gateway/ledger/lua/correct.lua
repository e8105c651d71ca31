-- Corrects what a hold was posted at once the bill has told what it was: a row of its own with the
-- difference, so that what was booked stays as it was, and the same difference in every counter that
-- the hold drew on and that still counts. Once for each hold.
--
-- KEYS  1 corrections  hash: hold id -> the difference that was booked
--       2 corrected    zset: stream id of a correction by the arrival (ms) of its request
--       3 counters  4 till  5 rows   (as in settle.lua)
-- ARGV  1 hold id  2 difference (may be negative)  3 row  4 arrival of the request (ms)
--       5 ...  the counters that the hold drew on
-- Answer {1, difference}: booked now; {0, difference}: this one was booked before, nothing changed

local digits = string.gsub(ARGV[2], '^%-', '')
local difference = whole(digits, 'difference')
local at = whole(ARGV[4], 'arrival')
if digits ~= ARGV[2] then
  if digits == '0' then
    error('BOOKS difference is not a plain whole number')
  end
  difference = -difference
end

local before = redis.call('HGET', KEYS[1], ARGV[1])
if before then
  return { 0, tonumber(before) }
end
local posted = tonumber(redis.call('HGET', KEYS[4], 'posted') or '0')
if posted + difference < 0 or posted + difference > MAX then
  error('BOOKS a correction would take what is posted out of its range')
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local entry = redis.call('XADD', KEYS[5], '*', 'p', ARGV[2], 'h', '0', 'r', ARGV[3])
redis.call('ZADD', KEYS[2], text(at), entry)
redis.call('HINCRBY', KEYS[4], 'posted', ARGV[2])
for i = 5, #ARGV do
  local field = ARGV[i] .. '|p'
  local counted = tonumber(redis.call('HGET', KEYS[3], field) or '0')
  -- its period may be long over, or its count may have begun anew: never below nothing
  local counted = tonumber(redis.call('HGET', KEYS[3], field) or '0')
  if counted > 0 then
    redis.call('HINCRBY', KEYS[3], field, text(math.max(difference, -counted)))
  end
end
return { 1, difference }
