-- Takes one from a window that ends now, by the server's clock. A hash holds a count for each bucket of time; a count leaves
-- when its whole bucket has left the window.
-- KEYS: counts, answer to this question.  ARGV: most, buckets a window, bucket in ms, how long the answer is kept in ms.
-- Answers: granted (1 or 0), ms until the oldest count leaves.
if redis.call('EXISTS', KEYS[2]) == 1 then
  return {1, 0}
end
local most, buckets, bucket, keep = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local current = math.floor(now / bucket)
local used, oldest = 0, current
local counts = redis.call('HGETALL', KEYS[1])
for i = 1, #counts, 2 do
  local at = tonumber(counts[i])
  if at < current - buckets then
    redis.call('HDEL', KEYS[1], counts[i])
  else
    used = used + tonumber(counts[i + 1])
    oldest = math.min(oldest, at)
  end
end
if used >= most then
  return {0, (oldest + buckets + 1) * bucket - now}
end
redis.call('HINCRBY', KEYS[1], string.format('%d', current), 1)
redis.call('PEXPIRE', KEYS[1], (buckets + 1) * bucket)
redis.call('SET', KEYS[2], 1, 'PX', keep)
return {1, 0}
