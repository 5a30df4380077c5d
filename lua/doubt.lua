-- doubt: proxy mode: the database may do what it was told last only now, or later: it is told it again.
--
-- KEYS 1 meta    hash
-- ARGV 1 known   highest timestamp this process knows to be stored
-- ARGV 2 at_us   wall clock, microseconds, from when on it would have come
-- REPLY  outcome "noted" | "lost"
-- FLAGS  allow-oom
--
-- @include dirty
-- @include keys
-- @include node
if not node.read(ARGV[1]) then return { 'lost' } end
for _, name in ipairs(redis.call('SMEMBERS', keys.telling)) do dirty.again(name, tonumber(ARGV[2])) end
redis.call('DEL', keys.telling)
return { 'noted' }
