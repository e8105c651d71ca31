-- Shared by every script of the books: the loader puts this file in front of each of them.
--
-- A hold is one field of `holds`, its value a string of lines:
--   open       state (P pending | S sent), amount, counter, counter, ...
--   resolved   state (D posted | V voided | E expired), what was posted
-- A counter is two fields of `counters`: "<counter>|p" posted and "<counter>|h" held, both nano-CNY.
-- Rules of every script: validate first and write last (Redis does not roll back), integers only,
-- never above 2^53 - 1 (Lua numbers are doubles), amounts are handed on as the text they came in.

local MAX = 9007199254740991

local function whole(digits, what)
  if not string.match(digits, '^%d+$') or #digits > 16 or string.match(digits, '^0%d') then
    error('BOOKS ' .. what .. ' is not a plain whole number')
  end
  local value = tonumber(digits)
  if value > MAX then
    error('BOOKS ' .. what .. ' is above 2^53 - 1')
  end
  return value
end

-- Milliseconds. Leases and deadlines live by one clock, the server's; tests hand in their own.
local function clock(given)
  if given ~= '0' then
    return whole(given, 'clock')
  end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function text(number)
  return string.format('%.0f', number)
end

local function lines(record)
  local out = {}
  for line in string.gmatch(record, '[^\n]+') do
    out[#out + 1] = line
  end
  return out
end

local function is_open(hold)
  return hold[1] == 'P' or hold[1] == 'S'
end

-- The counters that a hold drew on, one a line.
local function drawn_on(hold)
  return table.concat(hold, '\n', 3)
end

-- Ends an open hold: takes `amount` (text) out of held and puts `posted` (text) into posted on every
-- counter that it drew on. Answers {posted, held, posted, held, ...} of those counters, then forgets
-- the draft and remembers the outcome until `forget` (ms). The caller writes the row.
local function resolve(k, id, hold, state, posted, forget)
  local figures = {}
  local minus = hold[2] == '0' and '0' or '-' .. hold[2] -- HINCRBY does not take "-0"
  for i = 3, #hold do
    figures[#figures + 1] = redis.call('HINCRBY', k.counters, hold[i] .. '|p', posted)
    figures[#figures + 1] = redis.call('HINCRBY', k.counters, hold[i] .. '|h', minus)
  end
  redis.call('HINCRBY', k.till, 'posted', posted)
  redis.call('HINCRBY', k.till, 'held', minus)
  redis.call('HSET', k.holds, id, state .. '\n' .. posted)
  redis.call('HDEL', k.drafts, id)
  redis.call('ZREM', k.open, id)
  redis.call('ZADD', k.done, text(forget), id)
  return figures
end

-- Drops at most `count` outcomes whose time to be remembered is over. Answers how many it dropped.
local function forget_done(k, now, count)
  local ids = redis.call('ZRANGEBYSCORE', k.done, '-inf', text(now), 'LIMIT', 0, count)
  if #ids > 0 then
    redis.call('HDEL', k.holds, unpack(ids))
    redis.call('ZREM', k.done, unpack(ids))
  end
  return #ids
end

-- Whether a budget with this mode and limit (see set_budget.lua; nil: it was deleted, which its
-- epoch says too) lets `amount` be held on top of what is posted and held.
local function room(limit, amount, posted, held)
  local mode = string.sub(limit or '0', 1, 1)
  if mode == 'F' then
    return false
  elseif mode == 'S' then
    return posted + held + amount <= MAX
  end
  return amount <= tonumber(limit or '0') - posted - held
end
