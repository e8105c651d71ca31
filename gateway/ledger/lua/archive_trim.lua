-- Takes rows out of the stream that are archived and old enough. A row that is not archived stays,
-- whatever the caller says.
--
-- KEYS  1 claim  2 archive  3 rows   (as in archive_plan.lua and settle.lua)
-- ARGV  1 token  2 lease (ms)  3 rows booked before this moment may go (ms)  4 at most so many
-- Answer {1, how many went, 1 when there are more};  {0}: the claim is lost

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return { 0 }
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local before = whole(ARGV[3], 'moment')
local most = whole(ARGV[4], 'count')
local cursor = redis.call('HGET', KEYS[2], 'cursor')
if not cursor or before == 0 then
  return { 1, 0, 0 }
end
local ms = tonumber(string.match(cursor, '^(%d+)-'))
local last = cursor
if ms >= before then
  last = text(before - 1) -- a range's end without a sequence number takes in the whole millisecond
end
local entries = redis.call('XRANGE', KEYS[3], '-', last, 'COUNT', most)
if #entries == 0 then
  return { 1, 0, 0 }
end
local gone = entries[#entries][1]
local gone_ms, gone_seq = string.match(gone, '^(%d+)-(%d+)$')
redis.call('XTRIM', KEYS[3], 'MINID', '=', gone_ms .. '-' .. text(tonumber(gone_seq) + 1))
redis.call('HSET', KEYS[2], 'trimmed', gone)
return { 1, #entries, #entries == most and 1 or 0 }
