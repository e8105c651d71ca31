-- Makes an open hold larger, on every budget that it draws on, or on none of them.
--
-- KEYS  1 limits    2 defs   (as in set_budget.lua)
--       3 counters  hash: "<counter>|p", "<counter>|h"
--       4 holds     hash: hold id -> record (see common.lua)
--       5 open      zset: open holds of this owner by deadline
--       6 till      hash: posted, held over everything
-- ARGV  1 hold id  2 amount that it shall have
-- Answer {1, (posted, held) of each counter drawn on}   it has that amount, or more already
--        {2, posted, held, counter}                     its budget has no room; nothing changed
--        {3, state}  resolved      {4}  unknown, or a hold of nothing, which draws on no counter
--
-- A counter whose budget was deleted, reset or moved in the meantime binds nobody any more.

local id = ARGV[1]
local amount = whole(ARGV[2], 'amount')
local record = redis.call('HGET', KEYS[4], id)
if not record then
  return { 4 }
end
local hold = lines(record)
if not is_open(hold) then
  return { 3, hold[1] }
end
if not redis.call('ZSCORE', KEYS[5], id) then
  error('BOOKS this hold belongs to another gateway')
end
local had = tonumber(hold[2])
if had == 0 then
  return { 4 }
end
local more = math.max(0, amount - had)
local answer = { 1 }
for i = 3, #hold do
  local counter = hold[i]
  local figures = redis.call('HMGET', KEYS[3], counter .. '|p', counter .. '|h')
  local posted, held = tonumber(figures[1] or '0'), tonumber(figures[2] or '0')
  local budget, generation = string.match(counter, '^(.*)|([^|]*)|[^|]*$')
  local def = redis.call('HGET', KEYS[2], budget)
  local binds = def and lines(def)[1] == generation
  if more > 0 and binds then
    local limit = redis.call('HGET', KEYS[1], budget)
    if not room(limit, more, posted, held) then
      return { 2, posted, held, counter }
    end
  end
  answer[#answer + 1] = posted
  answer[#answer + 1] = held + more
end
if more == 0 then
  return answer
end
local added = text(more)
for i = 3, #hold do
  redis.call('HINCRBY', KEYS[3], hold[i] .. '|h', added)
end
redis.call('HINCRBY', KEYS[6], 'held', added)
hold[2] = ARGV[2]
redis.call('HSET', KEYS[4], id, table.concat(hold, '\n'))
return answer
