-- cursor: note how far a target has come.
--
-- KEYS 1 meta      hash
-- ARGV 1 target    node id
-- ARGV 2 revision  what it has acknowledged
-- REPLY  outcome   "stored"
-- FLAGS  allow-oom
--
-- @include keys
redis.call('HSET', keys.cursors, ARGV[1], ARGV[2])
return { 'stored' }
