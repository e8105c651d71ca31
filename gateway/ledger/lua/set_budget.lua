-- Defines a budget, changes it, or begins its count anew; and says so in the audit trail.
--
-- KEYS  1 limits    hash: epoch -> token that changes with every definition; serial -> number of the
--                   last change; budget id -> mode and limit (nano-CNY): "100" binds, "S100" counts and
--                   never refuses, "F100" is frozen and refuses everything
--       2 defs      hash: budget id -> lines: generation, version, zone, created (ms), first day of the
--                   period, options (JSON)
--       3 counters  hash: "<counter>|p", "<counter>|h"
--       4 audit     stream: act, who, id, from, to, p, h (figures of the moment)
--       5 periods   zset: counter by the time after which it may be dropped
-- ARGV  1 budget id "<period>|<scope>"  2 mode ('', S or F)  3 limit  4 zone  5 first day  6 options
--       7 clock (ms, 0: the server's)  8 new epoch  9 act  10 who  11 1: count from nothing
--       12 version that the caller has seen ('': whatever)  13 counter that counted so far, or ''
--       14 when that counter may be dropped (ms)
-- Answer {version, 1 when a new count begins else 0} or {-1}: somebody else was quicker
--
-- The generation is part of every counter's name: it changes when a budget is made, made again after
-- a deletion, reset, or moved to another zone or first day, and counting then begins at nothing.

whole(ARGV[3], 'limit')
local now = clock(ARGV[7])
local limit = ARGV[2] .. ARGV[3]
local old = redis.call('HGET', KEYS[2], ARGV[1])
local def = old and lines(old)
if ARGV[12] ~= '' and (def and def[2] or '0') ~= ARGV[12] then
  return { -1 }
end
local was = redis.call('HGET', KEYS[1], ARGV[1])
local fresh = not def or def[3] ~= ARGV[4] or (def[5] or '1') ~= ARGV[5] or ARGV[11] == '1'
if not fresh and was == limit and (def[6] or '{}') == ARGV[6] then
  return { tonumber(def[2]), 0 } -- nothing changes, so nobody has to reload
end
local version = text(redis.call('HINCRBY', KEYS[1], 'serial', 1))
local generation, created = version, text(now)
if not fresh then
  generation, created = def[1], def[4]
end
local posted, held = '0', '0'
if ARGV[13] ~= '' then
  local figures = redis.call('HMGET', KEYS[3], ARGV[13] .. '|p', ARGV[13] .. '|h')
  posted, held = figures[1] or '0', figures[2] or '0'
  if fresh then
    redis.call('ZADD', KEYS[5], ARGV[14], ARGV[13])
  end
end
local record = table.concat({ generation, version, ARGV[4], created, ARGV[5], ARGV[6] }, '\n')
redis.call('HSET', KEYS[2], ARGV[1], record)
redis.call('HSET', KEYS[1], ARGV[1], limit, 'epoch', ARGV[8])
redis.call('XADD', KEYS[4], '*', 'act', ARGV[9], 'who', ARGV[10], 'id', ARGV[1],
  'from', was and was .. '\n' .. old or '', 'to', limit .. '\n' .. record, 'p', posted, 'h', held)
return { tonumber(version), fresh and 1 or 0 }
