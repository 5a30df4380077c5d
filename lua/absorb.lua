-- absorb: take in a page of another node's states, whole buckets, also what is absent there.
--
-- KEYS 1 meta      hash
-- ARGV 1 now_us    wall clock, microseconds
-- ARGV 2 known     highest timestamp this process knows to be stored
-- ARGV 3 skew_us   how far ahead of now_us a timestamp may be
-- ARGV 4 rules     JSON of the conflict strategy
-- ARGV 5 way       "join": what both sides know together; "replace": theirs for all they have seen
-- ARGV 6 progress  text to be kept as the progress of the transfer, or ""
-- ARGV 7 hashes    JSON: key, newline, relation#subject -> hash of a tuple stored here
-- ARGV 8 page      per bucket a line of JSON: {"bucket", "vector", "tuples"}, the last a list of
--                  [key, relation#subject, hash, state]; with "replace" also "strays", keys stored
--                  here that the bucket does not list
-- ARGV 9 nodes     those whose writes are taken, with a blank before and after each; "" or
--                  left out: all
-- REPLY  outcome   "absorbed" | "need" | "skew" | "undecided" | "lost", then the clock, the vector as JSON, how
--                  many conflicts were won by what was stored here, and by what arrived; how many
--                  tuples became visible or changed, how many disappeared; with "need" nothing was
--                  written, and the names follow whose hashes are needed; with "undecided" a
--                  custom script has failed, nothing was written, and the reason follows
-- ERRORS BADPAGE   not a page; nothing was written
--
-- @include conflicts
-- @include digest
-- @include keys
-- @include node
-- @include pages
-- @include shown
-- @include strategy
-- @include transaction
-- @include tuples
local now_us, skew_us, way = tonumber(ARGV[1]), tonumber(ARGV[3]), ARGV[5]
local lost = { 'lost', '0', '{}', '0', '0', '0', '0' }
local self = node.read(ARGV[2])
if not self then return lost end
local rules_of = strategy.from(ARGV[4], self.changing)
if not rules_of then return redis.error_reply('BADPAGE unknown strategy') end
local hashes = cjson.decode(ARGV[7])
local need, seen = {}, 0
local revision = 0

local nodes = ARGV[9] or ''

-- Whether the node of an origin is one whose writes are taken.
local function is_known(origin)
  local name = string.match(origin, '^[^.]+') or ''
  return nodes == '' or string.find(nodes, ' ' .. name .. ' ', 1, true) ~= nil
end

local function decode(line)
  local ok, page = pcall(cjson.decode, line)
  if not ok or type(page) ~= 'table' or type(page.bucket) ~= 'number'
    or type(page.vector) ~= 'table' or type(page.tuples) ~= 'table'
  then
    return nil
  end
  local vector = {}
  for origin, text in pairs(page.vector) do
    local timestamp = number.parse(text)
    if not timestamp or not is_known(origin) then return nil end
    vector[origin] = timestamp
    if timestamp > seen then seen = timestamp end
  end
  page.vector = vector
  return page
end

-- The keys of a bucket that are stored here.
local function members(page)
  local list = redis.call('SMEMBERS', keys.bucket(page.bucket))
  if way == 'replace' and type(page.strays) == 'table' then
    for _, member in ipairs(page.strays) do
      if redis.call('SISMEMBER', keys.bucket(page.bucket), member) == 0 then
        list[#list + 1] = member
      end
    end
  end
  return list
end

-- What is stored as a state; nil for nothing, and for what was damaged behind our back.
local function decoded(text)
  if not text or way ~= 'replace' then return text and state.decode(text) end
  local ok, one = pcall(state.decode, text)
  local best = ok and one.siblings[1]
  return best and best.at and one.revision and one or nil
end

-- name -> {key, field, theirs, mine, hash} of every tuple that either side holds.
local function union(page)
  local found, order = {}, {}
  for _, row in ipairs(page.tuples) do
    local name = row[1] .. '\n' .. row[2]
    found[name] = { member = row[1], field = row[2], hash = row[3], theirs = row[4] }
    order[#order + 1] = name
  end
  for _, member in ipairs(members(page)) do
    local flat = redis.call('HGETALL', keys.stored(member))
    for i = 1, #flat, 2 do
      local name = member .. '\n' .. flat[i]
      if not found[name] then
        found[name] = { member = member, field = flat[i], hash = hashes[name] }
        order[#order + 1] = name
      end
      found[name].mine = flat[i + 1]
    end
  end
  return found, order
end

local here, there = 0, 0
local plan, undecided = {}, nil

local function resolve(page)
  local taken = pages.of(page.bucket)
  local found, order = union(page)
  for _, name in ipairs(order) do
    local one = found[name]
    local mine = decoded(one.mine)
    local theirs = one.theirs and state.decode(one.theirs)
    local theirs_seen = { page.vector, theirs and theirs.beyond or nil }
    local reached = { self.vector, page.vector, taken }
    local new, met, reason
    local _, named = tuples.named(one.member, one.field)
    local rules = rules_of(named.resource, named.relation)
    if way == 'replace' then
      local mine_seen = { self.vector, taken }
      new, met, reason =
        state.replace(mine, theirs, mine_seen, theirs_seen, reached, rules, revision)
    else
      local mine_seen = { self.vector }
      if taken then mine_seen[#mine_seen + 1] = taken end
      if mine and mine.beyond then mine_seen[#mine_seen + 1] = mine.beyond end
      new, met, reason = state.join(mine, theirs, mine_seen, theirs_seen, reached, rules, revision)
    end
    undecided = undecided or reason
    -- Repair also mends the indexes of what is as it should be.
    local is_same = way ~= 'replace' and mine and new and state.encode(new) == one.mine
    -- A version that came and lost may leave no trace but its conflict.
    if (not is_same or met[1]) and (one.mine or new) then
      if not one.hash then
        need[#need + 1] = name
      else
        plan[#plan + 1] = { bucket = page.bucket, one = one, mine = mine, new = new,
          conflicts = met, rules = rules }
      end
    end
  end
end

local batch = {}
for line in string.gmatch(ARGV[8], '[^\n]+') do
  local page = decode(line)
  if not page then return redis.error_reply('BADPAGE not a bucket with its vector and tuples, of nodes that are known here') end
  batch[#batch + 1] = page
end
if seen > now_us + skew_us then
  return { 'skew', number.text(self.clock), node.vector_json(self.vector), '0', '0', '0', '0' }
end
revision = node.tick(self, now_us, seen)
for _, page in ipairs(batch) do
  -- A peer has writes of this incarnation that are not stored here.
  if (page.vector[self.origin] or 0) > self.vector[self.origin] then return lost end
  resolve(page)
end
local function unwritten(outcome)
  return { outcome, number.text(self.clock), node.vector_json(self.vector), '0', '0', '0', '0' }
end
if undecided then
  local reply = unwritten('undecided')
  reply[#reply + 1] = undecided
  return reply
end
if need[1] then
  local reply = unwritten('need')
  for _, name in ipairs(need) do reply[#reply + 1] = name end
  return reply
end

local sums = {}

-- Repair trusts nothing that follows from what was stored: it is made anew.
local function mend(tenant, change, new)
  tuples.mend(tenant, change, new)
  local best = new and new.siblings[1]
  if best and best.insert then
    local sum = (sums[change.bucket] or 0) + digest.mix(change.hash, best.at, best.origin)
    sums[change.bucket] = sum % 1099511627776 -- 2^40
  end
end

for _, step in ipairs(plan) do
  local tenant, change = tuples.named(step.one.member, step.one.field)
  change.bucket, change.hash = step.bucket, step.one.hash
  if way == 'replace' then
    mend(tenant, change, step.new)
  elseif step.new then
    tuples.write(tenant, change, step.mine, step.new)
  else
    tuples.remove(tenant, change, step.mine)
  end
  for _, pair in ipairs(step.conflicts) do
    local winner = step.new and step.new.siblings[1]
    if winner == pair[2] then there = there + 1 else here = here + 1 end
    conflicts.add(revision, now_us, tenant, change, pair[1], pair[2], winner, step.rules)
  end
  shown.note(tenant, change, step.mine and step.mine.siblings[1], step.new and step.new.siblings[1])
end
for _, page in ipairs(batch) do
  if way == 'replace' then
    digest.set(number.text(page.bucket), sums[page.bucket] or 0)
    for _, member in ipairs(members(page)) do tuples.forget(member, page.bucket) end
  end
  pages.set(page.bucket, state.above(pages.of(page.bucket), page.vector, self.vector))
end
shown.append(self, now_us, revision)
redis.call('HSET', keys.meta, 'clock', number.text(self.clock))
if ARGV[6] ~= '' then redis.call('HSET', keys.meta, 'transfer', ARGV[6]) end
return {
  'absorbed', number.text(self.clock), node.vector_json(self.vector), number.text(here),
  number.text(there), number.text(shown.appeared), number.text(shown.disappeared),
}
