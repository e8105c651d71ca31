-- Holds money on every budget that a request draws on, or on none of them.
--
-- KEYS  1 limits    hash: epoch -> token that changes with every definition; budget id -> mode and
--                   limit (see set_budget.lua)
--       2 defs      hash: budget id -> definition (likewise)
--       3 counters  hash: "<counter>|p", "<counter>|h"
--       4 periods   zset: counter by the time after which it may be dropped
--       5 holds     hash: hold id -> record (see common.lua)
--       6 drafts    hash: hold id -> the row to write should its owner die
--       7 owners    zset: gateway process by the end of its lease
--       8 open      zset: open holds of this owner by deadline
--       9 done      zset: resolved holds by the time to forget them
--      10 till      hash: posted, held over everything
-- ARGV  1 hold id  2 amount  3 state P|S  4 time to live (ms)  5 draft  6 owner  7 lease (ms)
--       8 clock (ms, 0: the server's)  9 epoch that the caller knows
--       then for each budget: budget id, counter, drop time (ms; 0: never)
-- Answer {0, clock, epoch, limits, defs}             the caller's definitions are stale; nothing held
--        {1, (posted, held) of each budget}   held; a repeated call answers the same way
--        {2, number of the budget, posted, held}   that budget has no room; nothing held
--        {3, state}                                  this id was resolved before; nothing held

local k = { holds = KEYS[5], done = KEYS[9] }
local id = ARGV[1]
local amount = whole(ARGV[2], 'amount')
local ttl = whole(ARGV[4], 'time to live')
local lease = whole(ARGV[7], 'lease')
local now = clock(ARGV[8])
local count = (#ARGV - 9) / 3
if ARGV[3] ~= 'P' and ARGV[3] ~= 'S' then
  error('BOOKS unknown state')
end

local before = redis.call('HGET', KEYS[5], id)
if before and not is_open(lines(before)) then
  return { 3, string.sub(before, 1, 1) }
end

local limit_fields, figure_fields = { 'epoch' }, {}
for i = 1, count do
  limit_fields[i + 1] = ARGV[7 + 3 * i]
  figure_fields[2 * i - 1] = ARGV[8 + 3 * i] .. '|p'
  figure_fields[2 * i] = ARGV[8 + 3 * i] .. '|h'
  whole(ARGV[9 + 3 * i], 'drop time')
end
local limits = redis.call('HMGET', KEYS[1], unpack(limit_fields))
if (limits[1] or '') ~= ARGV[9] and not before then
  return {
    0, now, limits[1] or '',
    redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]),
  }
end
local figures = {}
if count > 0 then
  figures = redis.call('HMGET', KEYS[3], unpack(figure_fields))
end

local answer, record = { 1 }, ARGV[3] .. '\n' .. ARGV[2]
local added = before and 0 or amount
for i = 1, count do
  local posted = tonumber(figures[2 * i - 1] or '0')
  local held = tonumber(figures[2 * i] or '0')
  if not before and not room(limits[i + 1], amount, posted, held) then
    return { 2, i - 1, posted, held }
  end
  answer[#answer + 1] = posted
  answer[#answer + 1] = held + added
  if amount > 0 then
    record = record .. '\n' .. ARGV[8 + 3 * i]
  end
end
if before then
  return answer
end

if amount > 0 then -- a hold of nothing touches no counter, so it cannot revive a dropped one
  for i = 1, count do
    if not figures[2 * i - 1] then
      redis.call('HSET', KEYS[3], figure_fields[2 * i - 1], '0')
      if ARGV[9 + 3 * i] ~= '0' then
        redis.call('ZADD', KEYS[4], ARGV[9 + 3 * i], ARGV[8 + 3 * i])
      end
    end
    redis.call('HINCRBY', KEYS[3], figure_fields[2 * i], ARGV[2])
  end
end
redis.call('HINCRBY', KEYS[10], 'held', ARGV[2])
redis.call('HSET', KEYS[5], id, record)
redis.call('HSET', KEYS[6], id, ARGV[5])
redis.call('ZADD', KEYS[8], text(now + ttl), id)
redis.call('ZADD', KEYS[7], text(now + lease), ARGV[6])
forget_done(k, now, 2) -- each hold leaves one outcome behind, so two a call keep up with any load
return answer
