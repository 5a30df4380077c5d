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
-- @include node
if not node.read(ARGV[1]) then return { 'lost' } end
local intent = intents.open(ARGV[2])
if not intent then return { 'absent' } end
intents.close(intent, ARGV[3] == '1')
return { 'closed' }
