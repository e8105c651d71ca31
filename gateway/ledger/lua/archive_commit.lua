-- The planned batch is durable: the cursor moves behind it.
--
-- KEYS  1 claim  2 archive   (as in archive_plan.lua)
-- ARGV  1 token  2 lease (ms)  3 last row of the batch  4 its rows  5 its posted (may be negative)
-- Answer 1: committed;  0: the claim is lost;  2: this was not the plan (committed before, or other)

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if redis.call('HGET', KEYS[2], 'plan') ~= ARGV[3] then
  return 2
end
whole(ARGV[4], 'rows')
redis.call('HINCRBY', KEYS[2], 'rows', ARGV[4])
redis.call('HINCRBY', KEYS[2], 'posted_nano', ARGV[5])
redis.call('HSET', KEYS[2], 'cursor', ARGV[3])
redis.call('HDEL', KEYS[2], 'plan')
return 1
