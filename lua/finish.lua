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
--                  this transfer is not the one that was under way, and nothing was done. Then "more"
--                  when buckets are left to look at, or ""; then per tuple that holds a write from
--                  above an end: tenant/resource, relation#subject, its state, its revision, and
--                  that version, timestamp and origin. The pages of its bucket stay
-- FLAGS  allow-oom
--
-- A write from above the end of its incarnation came with a page from a source that lost it later:
-- no feed has it and no vector covers it. While the page says what it had overwritten, this node can
-- write the tuple again; afterwards it would differ from the others for ever.
--
-- @include floor
-- @include keys
-- @include node
-- @include pages
-- @include parked
-- @include state
local tuples_at_most = 1000
local self = node.read(ARGV[1])
if not self then return { 'lost', '{}', '{}', '' } end
if ARGV[3] ~= '' then
  if redis.call('HGET', keys.meta, 'transfer') ~= ARGV[3] then return { 'other', '{}', '{}', '' } end
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
local ended, looked_at = node.vector_of(ARGV[4]), 0
local reply = { 'finished', node.vector_json(self.vector), '', '' }

-- The entries of a page's vector that no vector will ever reach: origin -> where it ended.
local function lost_of(vector)
  local lost = nil
  for origin, timestamp in pairs(vector) do
    local last = ended[origin]
    if not last and ARGV[5] == '1' and node.is_gone(self.vector, origin) then last = 0 end
    if last and timestamp > last then
      lost = lost or {}
      lost[origin] = last
    end
  end
  return lost
end

-- Replies with the tuples of a bucket that hold a write from above an end; whether there are any.
local function has_orphans(bucket, lost)
  local before = #reply
  for _, member in ipairs(redis.call('SMEMBERS', keys.bucket(bucket))) do
    local flat = redis.call('HGETALL', keys.stored(member))
    looked_at = looked_at + #flat / 2
    for i = 1, #flat, 2 do
      local of = state.decode(flat[i + 1])
      for _, sibling in ipairs(of.siblings) do
        local last = lost[sibling.origin]
        if last and sibling.at > last then
          reply[#reply + 1] = member
          reply[#reply + 1] = flat[i]
          reply[#reply + 1] = flat[i + 1]
          reply[#reply + 1] = number.text(of.revision)
          reply[#reply + 1] = number.text(sibling.at) .. ' ' .. sibling.origin
          break
        end
      end
    end
  end
  return #reply > before
end

local flat = redis.call('HGETALL', keys.beyond)
for i = 1, #flat, 2 do
  local bucket, vector = tonumber(flat[i]), node.vector_of(flat[i + 1])
  local lost = lost_of(vector)
  if lost and looked_at >= tuples_at_most then
    reply[4] = 'more'
  elseif lost and not has_orphans(bucket, lost) then
    for origin in pairs(lost) do vector[origin] = 0 end
  end
  pages.set(bucket, state.above(vector, nil, self.vector))
end
parked.forget(self.vector)
local _, timestamps = floor.read()
reply[3] = node.vector_json(timestamps)
return reply
