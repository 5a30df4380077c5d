-- strays: which of these stored keys of tuples no bucket lists. A walk over `t:` keys asks.
--
-- KEYS 1 meta     hash
-- ARGV 1 known    highest timestamp this process knows to be stored
-- ARGV 2 members  JSON: a list of [tenant/resource, bucket]
-- REPLY  outcome  "strays" | "lost", then the members that are stored and not listed
--
-- @include keys
-- @include node
-- @include number
local self = node.read(ARGV[1])
if not self then return { 'lost' } end
local reply = { 'strays' }
for _, one in ipairs(cjson.decode(ARGV[2])) do
  local member, bucket = one[1], number.text(one[2])
  if redis.call('SISMEMBER', keys.bucket(bucket), member) == 0
    and redis.call('EXISTS', keys.stored(member)) == 1
  then
    reply[#reply + 1] = member
  end
end
return reply
