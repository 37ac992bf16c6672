-- Takes one from a window that begins with the first request and ends by the key's expiry.
-- KEYS: count, answer to this question.  ARGV: most, window in ms, how long the answer is kept in ms.
-- Answers: granted (1 or 0), ms until the window ends.
if redis.call('EXISTS', KEYS[2]) == 1 then
  return {1, 0}
end
local most, window, keep = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local left = redis.call('PTTL', KEYS[1])
if used >= most then
  return {0, math.max(left, 0)}
end
if left > 0 then
  redis.call('INCR', KEYS[1])
else
  redis.call('SET', KEYS[1], 1, 'PX', window)
end
redis.call('SET', KEYS[2], 1, 'PX', keep)
return {1, 0}
