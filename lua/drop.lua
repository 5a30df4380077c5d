-- drop: apply a parked transaction as an empty one, because an operator says so.
--
-- KEYS 1 meta       hash
-- ARGV 1 now_us     wall clock, microseconds
-- ARGV 2 known      highest timestamp this process knows to be stored
-- ARGV 3 origin     whose transaction
-- ARGV 4 timestamp  its timestamp: another one may be parked meanwhile
-- REPLY  outcome    "dropped" | "absent" | "lost", then the clock, and the vector as JSON; "absent":
--                   this transaction is not parked, and nothing was done
--
-- @include keys
-- @include node
-- @include number
-- @include transaction
local self = node.read(ARGV[2])
if not self then return { 'lost', '0', '{}' } end
local origin, absent = ARGV[3], { 'absent', number.text(self.clock), node.vector_json(self.vector) }
local text = redis.call('HGET', keys.parked, origin)
if not text then return absent end
local entry = cjson.decode(text)
local timestamp, previous = tonumber(entry.timestamp), tonumber(entry.previous)
local reached = self.vector[origin] or 0
if entry.timestamp ~= ARGV[4] or timestamp <= reached or previous > reached then return absent end

-- The place in the feed is one of now: the clock of this node must not follow one that is ahead.
local revision = node.tick(self, tonumber(ARGV[1]), 0)
self.vector[origin] = timestamp
node.append(self, revision, origin, timestamp, 0, '{"format":' .. transaction.format
  .. ',"origin":"' .. origin .. '","timestamp":"' .. entry.timestamp
  .. '","previous":"' .. entry.previous .. '","context":{},"tenant":"default","changes":[]}')
redis.call('HSET', keys.meta, 'clock', number.text(self.clock))
redis.call('HSET', keys.vector, origin, entry.timestamp)
redis.call('HDEL', keys.parked, origin)
return { 'dropped', number.text(self.clock), node.vector_json(self.vector) }
