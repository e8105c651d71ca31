-- Posts what an exchange cost and writes its row, in one step.
--
-- KEYS  1 holds     hash: hold id -> record (see common.lua)
--       2 drafts    hash: hold id -> row of a hold that is still open
--       3 counters  hash: "<counter>|p", "<counter>|h"
--       4 open      zset: open holds of the caller by deadline
--       5 done      zset: resolved holds by the time to forget them
--       6 till      hash: posted, held over everything
--       7 rows      stream, fields: p posted, h held, r the row as JSON, c (only when clamped) what
--                   was claimed, k (only of a row that the bill may correct) the counters drawn on
-- ARGV  1 hold id  2 cost  3 row  4 clock (ms, 0: the server's)  5 how long to remember (ms)
-- Answer {1, posted, (posted, held) of each counter drawn on}
--        {0, posted, state}   resolved before, nothing changed
--        {2}                  unknown: never reserved, or resolved so long ago that it is forgotten

local k = {
  holds = KEYS[1], drafts = KEYS[2], counters = KEYS[3],
  open = KEYS[4], done = KEYS[5], till = KEYS[6],
}
local id = ARGV[1]
local cost = whole(ARGV[2], 'cost')
local now = clock(ARGV[4])
local keep = whole(ARGV[5], 'time to remember')

local record = redis.call('HGET', k.holds, id)
if not record then
  return { 2 }
end
local hold = lines(record)
if not is_open(hold) then
  return { 0, tonumber(hold[2]), hold[1] }
end
if not redis.call('ZSCORE', k.open, id) then
  error('BOOKS this hold belongs to another gateway')
end

local posted = cost > tonumber(hold[2]) and hold[2] or ARGV[2]
local entry = { 'p', posted, 'h', hold[2], 'r', ARGV[3] }
if posted ~= ARGV[2] then
  entry[#entry + 1] = 'c'
  entry[#entry + 1] = ARGV[2]
end
if string.find(ARGV[3], '"state":"unreconciled"', 1, true) then -- a quote in a text is escaped
  entry[#entry + 1] = 'k'
  entry[#entry + 1] = drawn_on(hold)
end
redis.call('XADD', KEYS[7], '*', unpack(entry))
local figures = resolve(k, id, hold, 'D', posted, now + keep)
return { 1, tonumber(posted), unpack(figures) }
