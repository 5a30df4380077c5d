-- begin: a new incarnation, because this node may have lost some of its writes.
--
-- KEYS 1 meta         hash
-- ARGV 1 now_us       wall clock, microseconds
-- ARGV 2 node         node id
-- ARGV 3 incarnation  its name, greater than any known
-- ARGV 4 format       number of the stored format
-- ARGV 5 partitions   partition count
-- ARGV 6 rules        fingerprint of the conflict strategy
-- ARGV 7 run_id       of the server
-- ARGV 8 exposed      "1": what is written can be undone until a peer has told what this node once had;
--                     so can what earlier incarnations have written since nobody has told
-- ARGV 9 behind       "", or JSON of a vector that this node once had: it must catch up before it
--                     writes, and what an exposed incarnation has written is set aside
-- REPLY  outcome      "begun", then origin, clock, vector as JSON, how many transactions were set
--                     aside, and the first incarnation of this data set
-- FLAGS  allow-oom
--
-- @include dirty
-- @include keys
-- @include node
-- @include transaction
-- @include undo
local self = node.read('0') or { origin = '', clock = 0, vector = {}, exposed = false }
local aside = 0
-- Up to here the feed is what readers of the incarnation before were told.
local last = self.clock

if ARGV[9] ~= '' and self.exposed then
  undo.restore()
  local first, undone = redis.call('HGET', keys.meta, 'exposed'), {}
  for origin, timestamp in pairs(self.vector) do
    local is_own = string.match(origin, '^[^.]*') == ARGV[2]
    undone[origin] = is_own and timestamp >= tonumber(first) or nil
  end
  last = tonumber(first) - 1
  local entries = redis.call('XRANGE', keys.feed, first .. '-0', '+')
  for _, entry in ipairs(entries) do
    if undone[entry[2][2]] then
      if tonumber(entry[2][6]) > 0 then
        redis.call('RPUSH', keys.aside, entry[2][8])
        aside = aside + 1
      end
      redis.call('XDEL', keys.feed, entry[1])
    end
  end
  for origin in pairs(undone) do
    redis.call('HDEL', keys.vector, origin)
    redis.call('HSET', keys.meta, 'last:' .. origin, number.text(last))
    self.vector[origin] = nil
  end
end

local origin = ARGV[2] .. '.' .. ARGV[3]
local at = node.tick(self, tonumber(ARGV[1]), 0)
redis.call('HSET', keys.meta, 'node', ARGV[2], 'format', ARGV[4], 'partitions', ARGV[5],
  'rules', ARGV[6], 'run_id', ARGV[7])
redis.call('HDEL', keys.meta, 'behind')
if self.origin ~= '' then redis.call('HSET', keys.meta, 'last:' .. self.origin, number.text(last)) end
node.begin(self, origin, at, transaction.format)
if ARGV[9] == '' and ARGV[8] == '1' then
  redis.call('HSETNX', keys.meta, 'exposed', number.text(at))
else
  redis.call('HDEL', keys.meta, 'exposed')
  redis.call('DEL', keys.undo)
end
if ARGV[9] ~= '' then
  redis.call('HSET', keys.meta, 'behind', ARGV[9])
  -- What was written through this node the database has, and maybe nobody else.
  if dirty.self then redis.call('HSET', keys.meta, 'adopt', '1') end
end
return {
  'begun', origin, number.text(at), node.vector_json(self.vector), number.text(aside),
  redis.call('HGET', keys.meta, 'born'),
}
