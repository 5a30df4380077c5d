-- finish: the end of a state transfer: the vector rises to where the source began.
--
-- KEYS 1 meta      hash
-- ARGV 1 known     highest timestamp this process knows to be stored
-- ARGV 2 start     JSON of the source's vector before its first page; {} only lets go of what has
--                  been reached meanwhile
-- ARGV 3 progress  what `meta` must hold as the progress of the transfer, or "" for no transfer
-- ARGV 4 ended     JSON: incarnation -> where it ended; nobody has more of it
-- ARGV 5 whole     "1": every node has heard of every newest incarnation that is known here
-- ARGV 6 joined    JSON of the nodes whose states have been joined here since the rules changed; "":
--                  as it is
-- REPLY  outcome   "finished" | "other" | "lost", then the vector and the floor as JSON; "other":
--                  this transfer is not the one that was under way, and nothing was done
-- FLAGS  allow-oom
--
-- @include floor
-- @include keys
-- @include node
-- @include pages
-- @include parked
-- @include state
local self = node.read(ARGV[1])
if not self then return { 'lost', '{}', '{}' } end
if ARGV[3] ~= '' then
  if redis.call('HGET', keys.meta, 'transfer') ~= ARGV[3] then return { 'other', '{}', '{}' } end
  for origin, timestamp in pairs(node.vector_of(ARGV[2])) do
    if timestamp > (self.vector[origin] or 0) then
      self.vector[origin] = timestamp
      redis.call('HSET', keys.vector, origin, number.text(timestamp))
      -- The feed does not hold what lies between.
      redis.call('HSET', keys.floor, origin, number.text(timestamp))
    end
  end
  redis.call('HDEL', keys.meta, 'transfer')
  if ARGV[6] ~= '' then redis.call('HSET', keys.meta, 'joined', ARGV[6]) end
end
local reached = {}
for origin, timestamp in pairs(self.vector) do reached[origin] = timestamp end
for origin in pairs(node.vector_of(ARGV[4])) do reached[origin] = 9007199254740991 end
local flat = redis.call('HGETALL', keys.beyond)
for i = 1, #flat, 2 do
  local left = node.vector_of(flat[i + 1])
  for origin in pairs(left) do
    if ARGV[5] == '1' and node.is_gone(self.vector, origin) then left[origin] = 0 end
  end
  pages.set(tonumber(flat[i]), state.above(left, nil, reached))
end
parked.forget(self.vector)
local _, timestamps = floor.read()
return { 'finished', node.vector_json(self.vector), node.vector_json(timestamps) }
