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
-- ARGV 8 run_id       of the server: another one than before means that it was restarted
-- ARGV 9 proof        "1": it is known that what is there is all; "": peers must say so, or a new
--                     incarnation begins
-- ARGV 10 proxied     "1": a database stands behind this node, and is told what is merged here; what is
--                     there already it is told too, if none stood there before
-- REPLY  outcome      "opened" | "unproven" | "rules" | "lost", then origin, clock, vector as JSON;
--                     "1" while the incarnation is exposed, the vector it must reach as JSON if it is behind,
--                     the progress of a state transfer, the highest revision
--                     that was trimmed off the feed, the floor as JSON, the first incarnation of
--                     this data set, and while a change of the rules is under way JSON of the nodes
--                     whose states have been joined since, else ""; "rules": the data was merged
--                     under the rules that follow, nothing was done
-- ERRORS WRONGNODE    the data belongs to another node
-- ERRORS WRONGFORMAT  the data has another format or partition count
--
-- @include floor
-- @include keys
-- @include node
-- @include transaction
local known = ARGV[2]
local lost = { 'lost', '', '0', '{}', '', '', '', '0', '{}', '', '' }
local meta = redis.call('HMGET', keys.meta, 'node', 'format', 'partitions', 'rules')

if not meta[1] then
  if tonumber(known) > 0 then return lost end
  local fresh = { vector = {} }
  redis.call('HSET', keys.meta, 'node', ARGV[3], 'format', ARGV[5], 'partitions', ARGV[6],
    'rules', ARGV[7], 'run_id', ARGV[8])
  node.begin(fresh, ARGV[3] .. '.' .. ARGV[4], tonumber(ARGV[1]), transaction.format)
  if ARGV[9] ~= '1' then redis.call('HSET', keys.meta, 'exposed', ARGV[1]) end
elseif meta[1] ~= ARGV[3] then
  return redis.error_reply('WRONGNODE ' .. meta[1])
elseif meta[2] ~= ARGV[5] or meta[3] ~= ARGV[6] then
  return redis.error_reply('WRONGFORMAT ' .. meta[2] .. ' ' .. meta[3])
elseif meta[4] ~= ARGV[7] then
  return { 'rules', meta[4] or '' }
end

if ARGV[10] ~= '1' then
  redis.call('HDEL', keys.meta, 'proxied')
elseif redis.call('HSETNX', keys.meta, 'proxied', '1') == 1 then
  redis.call('HSET', keys.meta, 'remark', '0')
end
local self = node.read(known)
if not self then return lost end
local outcome = 'opened'
if redis.call('HGET', keys.meta, 'run_id') ~= ARGV[8] then
  if ARGV[9] == '1' then
    redis.call('HSET', keys.meta, 'run_id', ARGV[8])
  else
    outcome = 'unproven'
  end
end
local trimmed, timestamps = floor.read()
return {
  outcome, self.origin, number.text(self.clock), node.vector_json(self.vector),
  self.exposed and '1' or '', redis.call('HGET', keys.meta, 'behind') or '',
  redis.call('HGET', keys.meta, 'transfer') or '', number.text(trimmed), node.vector_json(timestamps),
  redis.call('HGET', keys.meta, 'born') or self.origin, redis.call('HGET', keys.meta, 'joined') or '',
}
