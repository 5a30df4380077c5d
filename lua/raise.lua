-- raise: keep the highest fencing epoch that was heard of, and fence this node by it.
--
-- KEYS 1 meta     hash
-- ARGV 1 known    highest timestamp this process knows to be stored
-- ARGV 2 home     region of this node; "": there is no primary, writes are taken in every region
-- ARGV 3 number   of an epoch, "0": of none, only what is stored counts
-- ARGV 4 region   the primary of that epoch
-- ARGV 5 vector   JSON: what the node that raised it had then; "": this node raises it
-- ARGV 6 held     "1": no writes for now, also where this region is the primary
-- REPLY  outcome  "raised" | "kept" | "lost"; "kept": none was given, or what is stored is not lower.
--                 Then the stored epoch as JSON, "" for none, and the vector as JSON: with a fence no
--                 write of an application is added to it
-- FLAGS  allow-oom
--
-- @include epoch
-- @include keys
-- @include node
local self = node.read(ARGV[1])
if not self then return { 'lost', '', '{}' } end

local outcome, stored = 'kept', epoch.read()
local given = { number = tonumber(ARGV[3]), region = ARGV[4] }
if given.number > 0 and (not stored or epoch.less(stored, given)) then
  given.vector = ARGV[5] == '' and self.vector or node.vector_of(ARGV[5])
  epoch.write(given)
  outcome, stored = 'raised', given
end

if ARGV[2] ~= '' and stored and stored.region ~= ARGV[2] then
  redis.call('HSET', keys.meta, 'fenced', stored.region)
elseif ARGV[6] == '1' then
  redis.call('HSET', keys.meta, 'fenced', '')
else
  redis.call('HDEL', keys.meta, 'fenced')
end
return { outcome, stored and epoch.text(stored) or '', node.vector_json(self.vector) }
