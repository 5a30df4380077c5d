-- collect: drop what every node has seen: losers, and tuples whose winner is a delete.
--
-- KEYS 1 meta     hash
-- ARGV 1 known    highest timestamp this process knows to be stored
-- ARGV 2 stable   JSON of the vector that every node has
-- ARGV 3 ended    JSON: incarnation -> where it ended
-- ARGV 4 tuples   JSON: a list of [name as in `unsettled`, bucket]
-- REPLY  outcome  "collected" | "waits" | "lost", then how many tuples were settled or went; "waits":
--                 a state transfer is under way, and tuples have seen more than the vector says
-- FLAGS  allow-oom
--
-- @include keys
-- @include node
-- @include state
-- @include tuples
local self = node.read(ARGV[1])
if not self then return { 'lost', '0' } end
if redis.call('EXISTS', keys.beyond) == 1 then return { 'waits', '0' } end
local stable, ended = node.vector_of(ARGV[2]), node.vector_of(ARGV[3])
local count = 0

-- What nobody has any more can never be received.
local function without_lost(beyond)
  local left = nil
  for origin, timestamp in pairs(beyond or {}) do
    local last = math.min(timestamp, ended[origin] or timestamp)
    if node.is_gone(self.vector, origin) then last = 0 end
    if last > (self.vector[origin] or 0) then
      left = left or {}
      left[origin] = last
    end
  end
  return left
end

for _, pair in ipairs(cjson.decode(ARGV[4])) do
  local member, field = string.match(pair[1], '^([^#]*)#(.*)$')
  local tenant, change = tuples.named(member, field)
  change.bucket = pair[2]
  local old = tuples.read(tenant, change)
  if not old then
    redis.call('ZREM', keys.unsettled, pair[1])
  else
    local trimmed = { siblings = old.siblings, revision = old.revision, beyond = without_lost(old.beyond) }
    local new = state.collect(trimmed, stable)
    if not new then
      tuples.remove(tenant, change, old)
      count = count + 1
    elseif state.is_settled(new) or (old.beyond and not new.beyond) then
      tuples.settle(tenant, change, old, new)
      count = count + 1
    end
  end
end
return { 'collected', number.text(count) }
