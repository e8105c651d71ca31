-- Resolves what nobody else will: holds past their deadline, and every hold of an owner whose lease
-- has run out. Pending: given back. Sent: posted in full, because the cloud may have billed it, with
-- a row made from the draft. Also drops old outcomes and the counters of periods long over.
--
-- KEYS  1 holds  2 drafts  3 counters  4 done  5 till  6 rows   (as in settle.lua; such a row has the
--                 further field s = x)
--       7 owners   zset: gateway process by the end of its lease; 0: it has said good-bye
--       8 periods  zset: counter by the time after which it may be dropped
--       9 swept    string: when the last sweep was (ms)
--      10 ...      open zset of each owner named in ARGV
-- ARGV  1 clock (ms, 0: the server's)  2 batch  3 how long to remember (ms)  4 lease (ms)
--       5 ...  owner, owner, ...
-- Answer {voided, expired, more (1: the batch was full)}

local now = clock(ARGV[1])
local batch = whole(ARGV[2], 'batch')
local keep = whole(ARGV[3], 'time to remember')
local lease = whole(ARGV[4], 'lease')
local k = {
  holds = KEYS[1], drafts = KEYS[2], counters = KEYS[3], done = KEYS[4], till = KEYS[5],
}

-- When nobody has swept for the length of a lease, the server itself was away and nobody could
-- renew. The living get one lease to report; without this the first gateway to come back would
-- expire the holds of all the others.
local last = tonumber(redis.call('GET', KEYS[9]) or '0')
local grace = last > 0 and now - last > lease
redis.call('SET', KEYS[9], text(now))

local voided, expired, left = 0, 0, batch

local function end_hold(id)
  local record = redis.call('HGET', k.holds, id)
  local hold = record and lines(record)
  if not hold or not is_open(hold) then
    redis.call('ZREM', k.open, id)
  elseif hold[1] == 'P' then
    resolve(k, id, hold, 'V', '0', now + keep)
    voided = voided + 1
  else
    local draft = redis.call('HGET', k.drafts, id) or '{}'
    redis.call('XADD', KEYS[6], '*', 'p', hold[2], 'h', hold[2], 'r', draft, 's', 'x',
      'k', drawn_on(hold))
    resolve(k, id, hold, 'E', hold[2], now + keep)
    expired = expired + 1
  end
end

for i = 5, #ARGV do
  local owner = ARGV[i]
  k.open = KEYS[i + 5]
  local ends = tonumber(redis.call('ZSCORE', KEYS[7], owner) or '0')
  if grace and ends > 0 and ends < now + lease then
    ends = now + lease
    redis.call('ZADD', KEYS[7], text(ends), owner)
  end
  if left > 0 then
    local ids
    if ends <= now then
      ids = redis.call('ZRANGE', k.open, 0, left - 1)
    else
      ids = redis.call('ZRANGEBYSCORE', k.open, '-inf', text(now), 'LIMIT', 0, left)
    end
    for _, id in ipairs(ids) do
      end_hold(id)
    end
    left = left - #ids
    if ends <= now and redis.call('ZCARD', k.open) == 0 then
      redis.call('ZREM', KEYS[7], owner)
    end
  end
end

local dropped = forget_done(k, now, batch)
local over = redis.call('ZRANGEBYSCORE', KEYS[8], '-inf', text(now), 'LIMIT', 0, batch)
for _, counter in ipairs(over) do
  if (redis.call('HGET', k.counters, counter .. '|h') or '0') == '0' then
    redis.call('HDEL', k.counters, counter .. '|p', counter .. '|h')
    redis.call('ZREM', KEYS[8], counter)
  else -- an open hold still draws on it: look again an hour later
    redis.call('ZADD', KEYS[8], text(now + 3600000), counter)
  end
end
local more = (left <= 0 or dropped == batch or #over == batch) and 1 or 0
return { voided, expired, more }
