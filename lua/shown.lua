-- shown: proxy mode: some tuples as they are here, and whether the database is known to have them so.
--
-- KEYS 1 meta    hash
-- ARGV 1 known   highest timestamp this process knows to be stored
-- ARGV 2… names  member#field
-- REPLY  outcome "some" | "lost", then per tuple its state, "" for none, and "1" if the database may have
--                something else for a reason: it is yet to be told, a write is under way, or it refuses
--
-- @include dirty
-- @include node
if not node.read(ARGV[1]) then return { 'lost' } end
local reply = { 'some' }
for i = 2, #ARGV do
  local name = ARGV[i]
  reply[#reply + 1] = dirty.text(name) or ''
  reply[#reply + 1] = (dirty.is_intended(name) or not dirty.is_told(name)) and '1' or ''
end
return reply
