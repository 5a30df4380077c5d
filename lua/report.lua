-- report: list as conflicts what this node had written and the new primary had not got.
-- One step of a walk over the feed; each transaction is listed once, also over restarts.
--
-- KEYS 1 meta     hash
-- ARGV 1 known    highest timestamp this process knows to be stored
-- ARGV 2 now_us   wall clock, microseconds
-- REPLY  outcome  "more" | "done" | "lost", then how many transactions and how many changes this step
--                 has listed, and "1" where the feed no longer has all of them
--
-- @include conflicts
-- @include epoch
-- @include floor
-- @include keys
-- @include node
-- @include transaction
-- @include version
local MOST_ENTRIES, MOST_CHANGES = 50, 5000

local self = node.read(ARGV[1])
if not self then return { 'lost', '0', '0', '' } end
local promoted = epoch.read()
if not promoted or not self.fenced then return { 'done', '0', '0', '' } end
local had, me = promoted.vector, string.match(self.origin, '^[^.]*')

local function is_own(origin) return string.match(origin, '^[^.]*') == me end

-- A revision that the writes of an incarnation which the new primary had not got lie behind. Where
-- it had not even heard of the incarnation, they are later than all of the one before.
local function beginning(origin)
  local found = had[origin] or 0
  for other, timestamp in pairs(had) do
    if is_own(other) and version.bytes_less(other, origin) then
      found = had[origin] or math.max(found, timestamp)
    end
  end
  return found
end

local from, trimmed = nil, ''
local _, lacking = floor.read()
for origin, timestamp in pairs(self.vector) do
  if is_own(origin) and timestamp > (had[origin] or 0) then
    from = math.min(from or timestamp, beginning(origin))
    if (lacking[origin] or 0) > (had[origin] or 0) then trimmed = '1' end
  end
end
-- For a write of this node the revision is the timestamp.
local to = self.vector[self.origin]
if not from or from >= to then return { 'done', '0', '0', '' } end

-- All between these two has been listed, or is not to be.
local low, high = string.match(redis.call('HGET', keys.meta, 'reported') or '', '^(%d+) (%d+)$')
low, high = tonumber(low), tonumber(high)
if not low or from > high then low, high = from, from end
if from >= low and high >= to then return { 'done', '0', '0', '' } end

local now_us, transactions, changes = tonumber(ARGV[2]), 0, 0
local at

local function list(revision, fields)
  local origin, timestamp = fields[2], tonumber(fields[4])
  local is_unshipped = is_own(origin) and timestamp == revision and timestamp > (had[origin] or 0)
  if not is_unshipped or tonumber(fields[6]) == 0 then return end
  local tx = transaction.decode(fields[8])
  at = at or node.tick(self, now_us, 0)
  transactions = transactions + 1
  for _, change in ipairs(tx.changes) do
    conflicts.add_fenced(at, now_us, tx, change, promoted)
    changes = changes + 1
  end
end

local function id(revision) return number.text(revision) .. '-0' end

local is_downwards = from < low
local entries
if is_downwards then
  entries = redis.call('XREVRANGE', keys.feed, id(low), id(from + 1), 'COUNT', MOST_ENTRIES)
else
  entries = redis.call('XRANGE', keys.feed, id(high + 1), id(to), 'COUNT', MOST_ENTRIES)
end
local is_all = #entries < MOST_ENTRIES
for index, entry in ipairs(entries) do
  local revision = tonumber(string.match(entry[1], '^%d+'))
  list(revision, entry[2])
  if is_downwards then low = revision - 1 else high = revision end
  if changes >= MOST_CHANGES and index < #entries then
    is_all = false
    break
  end
end
if is_all and is_downwards then low = from end
if is_all and not is_downwards then high = to end

redis.call('HSET', keys.meta, 'reported', number.text(low) .. ' ' .. number.text(high))
if at then redis.call('HSET', keys.meta, 'clock', number.text(self.clock)) end
local outcome = (from < low or high < to) and 'more' or 'done'
return { outcome, number.text(transactions), number.text(changes), trimmed }
