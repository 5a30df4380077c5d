-- tenants: how many relationships of each tenant some buckets show; expired ones count.
--
-- KEYS 1 meta    hash
-- ARGV 1 known   highest timestamp this process knows to be stored
-- ARGV 2 first   the bucket to begin with
-- ARGV 3 tuples  after this many stored tuples no further bucket is begun
-- REPLY  outcome "tenants" | "lost", then the bucket to go on with, then per tenant its name and how many
--
-- @include keys
-- @include node
if not node.read(ARGV[1]) then return { 'lost', '0' } end
local bucket, seen, most = tonumber(ARGV[2]), 0, tonumber(ARGV[3])
local counts, names = {}, {}

while bucket < 4096 and seen < most do
  for _, member in ipairs(redis.call('SMEMBERS', keys.bucket(bucket))) do
    local tenant = string.match(member, '^[^/]*')
    if not counts[tenant] then
      counts[tenant] = 0
      names[#names + 1] = tenant
    end
    for _, value in ipairs(redis.call('HVALS', keys.stored(member))) do
      if string.sub(value, 1, 1) == '+' then counts[tenant] = counts[tenant] + 1 end
      seen = seen + 1
    end
  end
  bucket = bucket + 1
end

local reply = { 'tenants', number.text(bucket) }
for _, tenant in ipairs(names) do
  reply[#reply + 1] = tenant
  reply[#reply + 1] = number.text(counts[tenant])
end
return reply
