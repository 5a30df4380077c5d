-- merge: take in a batch of transactions of other origins, in order.
--
-- KEYS 1 meta        hash
-- ARGV 1 now_us      wall clock, microseconds
-- ARGV 2 known       highest timestamp this process knows to be stored
-- ARGV 3 skew_us     how far ahead of now_us a timestamp may be
-- ARGV 4 rules       JSON of the conflict strategy
-- ARGV 5 batch       transactions as they came from the peer: JSON, one a line
-- ARGV 6 nodes       those whose transactions are taken, with a blank before and after each; "" or
--                    left out: all
-- REPLY  outcome     "applied" | "gap" | "lost" | "contradiction"; whatever stops the batch, the
--                    transactions before it are applied. Then a detail in words, the clock, and how
--                    many transactions, conflicts won by what was stored here, conflicts won by what
--                    arrived; the vector as JSON; last JSON, origin to reason, of what was parked:
--                    it holds the rest of its origin, the other origins go on
-- ERRORS BADBATCH    not a batch of transactions; nothing was written
--
-- @include conflicts
-- @include keys
-- @include node
-- @include pages
-- @include parked
-- @include strategy
-- @include transaction
-- @include tuples
local now_us, skew_us = tonumber(ARGV[1]), tonumber(ARGV[3])
local self = node.read(ARGV[2])
if not self then return { 'lost', '', '0', '0', '0', '0', '{}', '{}' } end
local rules_of = strategy.from(ARGV[4], self.changing)
if not rules_of then return redis.error_reply('BADBATCH unknown strategy') end

local nodes = ARGV[6] or ''

-- Why nothing of this origin is taken; nil when it is.
local function stranger(origin)
  local name = string.match(origin, '^[^.]+')
  if nodes == '' or string.find(nodes, ' ' .. name .. ' ', 1, true) then return nil end
  return name .. ' is no node of the topology here, and none that was removed from it'
end

-- Everything is decoded before the first write, so that an error leaves nothing half done.
local batch, strangers = {}, 0
for line in string.gmatch(ARGV[5], '[^\n]+') do
  local tx, wrong = transaction.decode(line)
  if not tx then return redis.error_reply('BADBATCH ' .. wrong) end
  batch[#batch + 1] = tx
  tx.stranger = stranger(tx.origin)
  if tx.stranger and not parked.follows(tx.origin) then strangers = strangers + 1 end
end
if strangers > 0 and parked.count() + strangers > parked.most then
  return redis.error_reply('BADBATCH transactions of too many nodes that are not in the topology')
end

local applied, won_here, won_there = 0, 0, 0
local outcome, detail = 'applied', ''
local raised = {}

-- What became visible here, for a change whose version is not the winner: nothing (`=`), or the
-- winner. Watchers of this node are told this instead of the change.
local function effect(old, new)
  local best = new.siblings[1]
  if old and old.siblings[1] == best then return { '=' } end
  if not best.insert then return { '-' } end
  return { '+', best.condition or '', best.expires_at or '' }
end

-- Chooses every winner of a transaction; nothing is written. Returns nil if its contexts lie, or with
-- a reason if a custom script fails, else per change {old state or false, new state, what arrived,
-- the siblings it differs from or nil, the rules}.
local function resolve(tx, revision)
  local reached_before = self.vector[tx.origin]
  self.vector[tx.origin] = tx.timestamp
  local unreached = state.above(tx.context, nil, self.vector)
  local states, effects = {}, nil
  for index, change in ipairs(tx.changes) do
    local page = pages.of(change.bucket)
    local is_taken = page and tx.timestamp <= (page[tx.origin] or 0)
    local old = not is_taken and tuples.read(tx.tenant, change)
    local sibling = {
      at = tx.timestamp, origin = tx.origin, insert = change.insert,
      condition = change.insert and change.condition or nil,
      expires_at = change.insert and change.expires_at or nil,
    }
    local new, beside, reason
    local rules = rules_of(change.resource, change.relation)
    if is_taken then
      -- It came with a page, and so did what overwrote it.
      new = false
    else
      new, beside, reason = state.absorb(old or nil, sibling, tx.previous, tx.context,
        tx.beyond and tx.beyond[number.text(index)], self.vector, unreached, rules, revision)
    end
    if new == nil then
      self.vector[tx.origin] = reached_before
      return nil, nil, reason
    end
    if not new or new.siblings[1] ~= sibling then
      effects = effects or {}
      effects[number.text(index)] = new and effect(old, new) or { '=' }
    end
    states[index] = { old or false, new, sibling, beside or false, rules }
  end
  return states, effects and cjson.encode(effects)
end

local function store(tx, change, chosen, revision)
  local old, new, arrived, beside = chosen[1] or nil, chosen[2], chosen[3], chosen[4]
  if not new then return end
  tuples.write(tx.tenant, change, old, new)
  if not beside then return end
  local winner = new.siblings[1]
  if winner == arrived then
    won_there = won_there + #beside
  else
    won_here = won_here + #beside
  end
  for _, stored in ipairs(beside) do
    conflicts.add(revision, now_us, tx.tenant, change, stored, arrived, winner, chosen[5])
  end
end

for _, tx in ipairs(batch) do
  local reached = self.vector[tx.origin] or 0
  if tx.timestamp > reached and not parked.holds(tx.origin) then
    if tx.previous > reached and not parked.follows(tx.origin) then
      outcome = 'gap'
      detail = tx.origin .. ' continues ' .. number.text(tx.previous) .. ', here it is at '
        .. number.text(reached)
      break
    end
    if tx.origin == self.origin then
      outcome, detail = 'lost', 'a peer holds writes of this node that are not stored here'
      break
    end
    if tx.previous > reached then
      parked.hold(tx.origin)
    elseif tx.stranger then
      parked.put(tx, now_us, tx.stranger)
    elseif tx.unknown then
      parked.put(tx, now_us, tx.unknown)
    elseif tx.timestamp > now_us + skew_us then
      parked.put(tx, now_us, 'it is ' .. number.text((tx.timestamp - now_us) / 1000)
        .. ' ms ahead of the clock of this node')
    else
      local clock = self.clock
      local revision = node.tick(self, now_us, tx.timestamp)
      local states, effects, reason = resolve(tx, revision)
      if states then
        for index, change in ipairs(tx.changes) do store(tx, change, states[index], revision) end
        node.append(self, revision, tx.origin, tx.timestamp, #tx.changes, tx.text, effects)
        raised[tx.origin] = tx.timestamp
        applied = applied + 1
      else
        -- Nothing was stored, and nobody may be told of a clock that was not.
        self.clock = clock
        if not reason then
          outcome, detail = 'contradiction', 'the contexts that ' .. tx.origin .. ' sent contradict'
          break
        end
        parked.put(tx, now_us, reason)
      end
    end
  end
end

if applied > 0 then
  redis.call('HSET', keys.meta, 'clock', number.text(self.clock))
  for origin, timestamp in pairs(raised) do
    redis.call('HSET', keys.vector, origin, number.text(timestamp))
    parked.clear(origin)
  end
end
return {
  outcome, detail, number.text(self.clock), number.text(applied), number.text(won_here),
  number.text(won_there), node.vector_json(self.vector), parked.json(),
}
