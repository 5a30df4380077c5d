-- withdraw: proxy mode: close an intent of which nothing came.
--
-- KEYS 1 meta    hash
-- ARGV 1 known   highest timestamp this process knows to be stored
-- ARGV 2 id      of the intent
-- ARGV 3 doubt   "1": the database may have done it or may do it yet: it is to be told what is right
-- REPLY  outcome "closed" | "absent" | "lost"
-- FLAGS  allow-oom
--
-- @include intents
-- @include keys
-- @include node
-- @include number
local self = node.read(ARGV[1])
if not self then return { 'lost' } end
local seen = intents.close(ARGV[2])
if not seen then return { 'absent' } end
if ARGV[3] == '1' then
  for name in pairs(seen) do redis.call('ZADD', keys.dirty, number.text(self.clock), name) end
end
return { 'closed' }
