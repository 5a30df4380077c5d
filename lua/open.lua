-- open: make the data set of a node, or check that it is the one expected.
--
-- KEYS 1 meta         hash
-- ARGV 1 now_us       wall clock, microseconds
-- ARGV 2 known        highest timestamp this process knows to be stored; 0 at its start
-- ARGV 3 node         node id
-- ARGV 4 incarnation  name of the incarnation to begin if there is none
-- ARGV 5 format       number of the stored format
-- ARGV 6 partitions   partition count
-- ARGV 7 rules        fingerprint of the conflict strategy
-- REPLY  outcome      "opened" | "lost", then origin, clock, vector as JSON, the highest revision
--                     that was trimmed off the feed, floor as JSON
-- ERRORS WRONGNODE    the data belongs to another node
-- ERRORS WRONGFORMAT  the data has another format or partition count
-- ERRORS WRONGRULES   the data was merged under another strategy
--
-- @include floor
-- @include keys
-- @include node
-- @include transaction
local now_us, known = tonumber(ARGV[1]), ARGV[2]
local meta = redis.call('HMGET', keys.meta, 'node', 'format', 'partitions', 'rules')

if not meta[1] then
  if tonumber(known) > 0 then return { 'lost', '', '0', '{}', '0', '{}' } end
  -- A data set begins with an empty transaction, so that its incarnation stands in the vector of
  -- everyone who has heard of it.
  local origin = ARGV[3] .. '.' .. ARGV[4]
  redis.call('HSET', keys.meta, 'node', ARGV[3], 'origin', origin, 'format', ARGV[5],
    'partitions', ARGV[6], 'rules', ARGV[7], 'clock', number.text(now_us))
  redis.call('HSET', keys.vector, origin, number.text(now_us))
  node.append(nil, now_us, origin, now_us, 0, '{"format":' .. transaction.format
    .. ',"origin":"' .. origin .. '","timestamp":"' .. number.text(now_us)
    .. '","previous":"0","context":{},"tenant":"default","changes":[]}')
elseif meta[1] ~= ARGV[3] then
  return redis.error_reply('WRONGNODE ' .. meta[1])
elseif meta[2] ~= ARGV[5] or meta[3] ~= ARGV[6] then
  return redis.error_reply('WRONGFORMAT ' .. meta[2] .. ' ' .. meta[3])
elseif meta[4] ~= ARGV[7] then
  return redis.error_reply('WRONGRULES ' .. meta[4])
end

local self = node.read(known)
if not self then return { 'lost', '', '0', '{}', '0', '{}' } end
local trimmed, timestamps = floor.read()
return {
  'opened', self.origin, number.text(self.clock), node.vector_json(self.vector),
  number.text(trimmed), node.vector_json(timestamps),
}
