-- noted: proxy mode: an open intent, and what has become of its tuples since.
--
-- KEYS 1 meta    hash
-- ARGV 1 known   highest timestamp this process knows to be stored
-- ARGV 2 id      of the intent
-- REPLY  outcome "open" | "absent" | "lost", then with "open" the intent as JSON, see `intents`; and a
--                digit per tuple: "1" where it has another version by now
--
-- @include dirty
-- @include keys
-- @include node
-- @include state
if not node.read(ARGV[1]) then return { 'lost' } end
local text = redis.call('HGET', keys.intents, ARGV[2])
if not text then return { 'absent' } end
local intent, moved = cjson.decode(text), {}
for index, name in ipairs(intent.names) do
  moved[index] = dirty.version(dirty.state(name)) == intent.seen[index] and '0' or '1'
end
return { 'open', text, table.concat(moved) }
