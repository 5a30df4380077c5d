-- applied: proxy mode: what the database has said about tuples it was told.
--
-- KEYS 1 meta    hash
-- ARGV 1 known   highest timestamp this process knows to be stored
-- ARGV 2 now_us  wall clock, microseconds
-- ARGV 3… rows   per tuple: member#field; the version that it was told, "at origin" or ""; and why it
--                refuses it, or ""
-- REPLY  outcome "noted" | "lost", then how many marks are gone. Where the winner is another one by now, or
--                a write is under way, the mark stays
-- FLAGS  allow-oom
--
-- @include dirty
-- @include keys
-- @include node
if not node.read(ARGV[1]) then return { 'lost', '0' } end
local gone = 0
for i = 3, #ARGV, 3 do
  local name, version, reason = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if dirty.version(dirty.state(name)) == version and not dirty.is_intended(name) then
    gone = gone + redis.call('ZREM', keys.dirty, name)
    if reason == '' then
      redis.call('HDEL', keys.held, name)
      dirty.has(name)
    else
      redis.call('HSET', keys.held, name, cjson.encode({ reason = reason, since = ARGV[2] }))
    end
  end
end
return { 'noted', tostring(gone) }
