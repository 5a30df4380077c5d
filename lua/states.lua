-- states: all tuples of some buckets, hidden ones included, and the vector that they are judged by.
--
-- KEYS 1 meta     hash
-- ARGV 1 known    highest timestamp this process knows to be stored
-- ARGV 2 first    the bucket to begin with
-- ARGV 3 buckets  how many buckets at most
-- ARGV 4 tuples   after this many tuples no further bucket is begun
-- REPLY  outcome  "states" | "lost", then the bucket to go on with, the vector as JSON, then per
--                 bucket: its number, its digest, what was taken over beyond the vector as JSON,
--                 how many tuples, and of each: key, relation#subject, state
--
-- @include keys
-- @include node
-- @include pages
local self = node.read(ARGV[1])
if not self then return { 'lost', '0', '{}' } end
local bucket, count = tonumber(ARGV[2]), 0
local last = math.min(bucket + tonumber(ARGV[3]), 4096)
local reply = { 'states', '', node.vector_json(self.vector) }

while bucket < last and count < tonumber(ARGV[4]) do
  local name = number.text(bucket)
  reply[#reply + 1] = name
  reply[#reply + 1] = redis.call('HGET', keys.digest, name) or '0'
  reply[#reply + 1] = node.vector_json(pages.of(bucket) or {})
  reply[#reply + 1] = ''
  local at, before = #reply, count
  for _, member in ipairs(redis.call('SMEMBERS', keys.bucket(bucket))) do
    local flat = redis.call('HGETALL', keys.stored(member))
    for i = 1, #flat, 2 do
      reply[#reply + 1] = member
      reply[#reply + 1] = flat[i]
      reply[#reply + 1] = flat[i + 1]
      count = count + 1
    end
  end
  reply[at] = number.text(count - before)
  bucket = bucket + 1
end
reply[2] = number.text(bucket)
return reply
