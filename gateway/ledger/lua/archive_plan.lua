-- Fixes which rows the next batch holds, before any of them is written: whoever carries on after a
-- crash writes the same rows to the same names.
--
-- KEYS  1 claim  2 archive  hash: id of the books; cursor: stream id of the last archived row;
--                           plan: last row of the batch under way; rows, posted_nano: what is
--                           archived; trimmed: last row that left the stream
-- ARGV  1 token  2 lease (ms)  3 cursor that the caller knows ('' for none)  4 last row of the batch
-- Answer {1, last row}: this batch is the plan (a plan that stands already is kept)
--        {0}: the claim is lost;  {2}: the cursor is another one

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return { 0 }
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if (redis.call('HGET', KEYS[2], 'cursor') or '') ~= ARGV[3] then
  return { 2 }
end
redis.call('HSETNX', KEYS[2], 'plan', ARGV[4])
return { 1, redis.call('HGET', KEYS[2], 'plan') }
