-- remark: proxy mode: have the database told again: what it refused, or some buckets whole.
--
-- KEYS 1 meta    hash
-- ARGV 1 known   highest timestamp this process knows to be stored
-- ARGV 2 first   bucket from which on, or "" for what is held
-- ARGV 3 last    the last one
-- REPLY  outcome "marked" | "lost", then how many tuples
--
-- @include dirty
-- @include keys
-- @include node
-- @include number
if not node.read(ARGV[1]) then return { 'lost', '0' } end
local count = 0

local function mark(name)
  dirty.put(name)
  count = count + 1
end

if ARGV[2] == '' then
  for _, name in ipairs(redis.call('HKEYS', keys.held)) do mark(name) end
else
  for bucket = tonumber(ARGV[2]), tonumber(ARGV[3]) do
    for _, member in ipairs(redis.call('SMEMBERS', keys.bucket(bucket))) do
      for _, field in ipairs(redis.call('HKEYS', keys.stored(member))) do
        mark(member .. '#' .. field)
      end
    end
  end
  -- The next walk begins here, should this one be cut short.
  redis.call('HSET', keys.meta, 'remark', number.text(tonumber(ARGV[3]) + 1))
end
return { 'marked', number.text(count) }
