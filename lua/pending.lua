-- pending: proxy mode: what the database is to be told next, oldest mark first.
--
-- KEYS 1 meta    hash
-- ARGV 1 known   highest timestamp this process knows to be stored
-- ARGV 2 now_us  wall clock, microseconds
-- ARGV 3 count   at most so many tuples
-- REPLY  outcome "some" | "lost", then per tuple: member#field, and its state, "" for none. Tuples in an
--                open intent wait. The outcome of what was told before must be known, or `doubt` have
--                been said of it
-- FLAGS  allow-oom
--
-- @include dirty
-- @include keys
-- @include node
if not node.read(ARGV[1]) then return { 'lost' } end
local count, window, after = tonumber(ARGV[3]), 1000, 0
for _, name in ipairs(redis.call('ZRANGEBYSCORE', keys.again, '-inf', ARGV[2], 'LIMIT', 0, window)) do
  dirty.put(name)
  redis.call('ZREM', keys.again, name)
end
redis.call('DEL', keys.telling)
local reply = { 'some' }
repeat
  local names = redis.call('ZRANGE', keys.dirty, after, after + window - 1)
  for _, name in ipairs(names) do
    if #reply > 2 * count then break end
    if not dirty.is_intended(name) then
      reply[#reply + 1] = name
      reply[#reply + 1] = dirty.text(name) or ''
      redis.call('SADD', keys.telling, name)
    end
  end
  after = after + window
until #names < window or #reply > 1
return reply
