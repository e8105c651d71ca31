-- Ends the claim of the caller, if it has it.
--
-- KEYS  1 claim
-- ARGV  1 token
-- Answer 1: ended; 0: it was not the caller's

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
