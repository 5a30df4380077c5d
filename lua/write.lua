-- write: commit a group of local writes, each a transaction of its own.
--
-- KEYS 1 meta      hash
-- ARGV 1 now_us    wall clock, microseconds
-- ARGV 2 known     highest timestamp this process knows to be stored
-- ARGV 3… pairs    per write: its body, `"tenant":"…","changes":[…]}`, the tail of the JSON of
--                  its transaction; and "" or JSON {"expected", "key", "hash", "again", "intent",
--                  "late"},
--                  each optional; "again": it was accepted before, and no fence keeps it out;
--                  "intent": it was noted before under this id, and the database has done it; "late":
--                  that was found out by looking, and it is told once more
-- REPLY  outcome   "stored" | "behind" | "lost", then the vector as JSON, the timestamp of this
--                  node's write before these, its origin, then four texts per write:
--                  "written" | "replayed" | "mismatch" | "reused" | "fenced" | "absent" (there is no
--                  such intent, or no more), revision, deleted,
--                  answer (for "replayed": JSON {"written", "vector"} of the first time; for
--                  "fenced": the region that is the primary, "" while writes are held)
-- ERRORS BADWRITE  a body is malformed; nothing was written
--
-- @include dirty
-- @include intents
-- @include keys
-- @include node
-- @include pages
-- @include transaction
-- @include tuples
-- @include undo
local now_us = tonumber(ARGV[1])
local self = node.read(ARGV[2])
if not self then return { 'lost', '{}', '0', '' } end
if self.behind then return { 'behind', '{}', '0', '' } end

-- Everything is decoded before the first write, so that an error leaves nothing half done.
local writes = {}
for i = 3, #ARGV, 2 do
  local ok, body = pcall(cjson.decode, '{' .. ARGV[i])
  if not ok then return redis.error_reply('BADWRITE body is not JSON') end
  local changes, wrong = transaction.changes(body.changes)
  if not changes then return redis.error_reply('BADWRITE ' .. wrong) end
  local guard = ARGV[i + 1] ~= '' and cjson.decode(ARGV[i + 1]) or {}
  writes[#writes + 1] = { tenant = body.tenant, changes = changes, body = ARGV[i], guard = guard }
end

local context_json = node.vector_json(self.vector, self.origin)
local reply = { 'stored', '', number.text(self.vector[self.origin]), self.origin }

local function answer(outcome, revision, deleted, text)
  reply[#reply + 1] = outcome
  reply[#reply + 1] = revision
  reply[#reply + 1] = deleted
  reply[#reply + 1] = text
end

-- Returns whether an earlier request with this key has answered for this one.
local function is_repeat(guard)
  if not guard.key then return false end
  local stored = redis.call('GET', keys.idempotency(guard.key))
  if not stored then return false end
  local first = cjson.decode(stored)
  if first.hash ~= guard.hash then
    answer('reused', '0', '0', '')
  else
    answer('replayed', first.revision, first.deleted,
      '{"written":' .. first.written .. ',"vector":' .. first.vector .. '}')
  end
  return true
end

local function is_visible(old)
  local best = old and old.siblings[1]
  return best and best.insert
    and not (best.expires_at and tonumber(best.expires_at) <= now_us) or false
end

local function commit(write)
  local intended = nil
  if write.guard.intent then
    intended = intents.open(write.guard.intent)
    if not intended then return answer('absent', '0', '0', '') end
  end
  if self.fenced and not write.guard.again and not intended then return answer('fenced', '0', '0', self.fenced) end
  local states, expected = {}, write.guard.expected
  for index, change in ipairs(write.changes) do
    local old = tuples.read(write.tenant, change)
    if expected and old and old.revision > tonumber(expected) then
      return answer('mismatch', number.text(old.revision), '0',
        change.resource .. '#' .. change.relation .. '@' .. change.subject)
    end
    states[index] = old or false
  end
  local seen = {}
  if intended then
    intents.close(intended, write.guard.late)
    if not write.guard.late then seen = intents.seen(intended) end
  end
  local previous = self.vector[self.origin]
  local at = node.tick(self, now_us, 0)
  local deleted, inserted, beyond = 0, 0, {}
  for index, change in ipairs(write.changes) do
    local old = states[index] or nil
    if change.insert then
      inserted = inserted + 1
    elseif is_visible(old) then
      deleted = deleted + 1
    end
    local new = state.write(old, {
      at = at, origin = self.origin, insert = change.insert,
      condition = change.insert and change.condition or nil,
      expires_at = change.insert and change.expires_at or nil,
    }, self.vector)
    local page = pages.of(change.bucket)
    local above = page and state.above(new.beyond, page, self.vector) or new.beyond
    if above then beyond[#beyond + 1] = '"' .. index .. '":' .. node.vector_json(above) end
    if self.exposed then undo.note(write.tenant, change, old) end
    -- What came in between the intent and this may have reached the database as well.
    local name = dirty.name(write.tenant, change)
    local is_applied = seen[name] == dirty.version(old)
    if is_applied then dirty.has(name) end
    tuples.write(write.tenant, change, old, new, is_applied)
  end
  self.vector[self.origin] = at
  local extra = ''
  if beyond[1] then extra = '"beyond":{' .. table.concat(beyond, ',') .. '},' end
  node.append(self, at, self.origin, at, #write.changes, '{"format":' .. transaction.format
    .. ',"origin":"' .. self.origin .. '","timestamp":"' .. number.text(at)
    .. '","previous":"' .. number.text(previous) .. '","context":' .. context_json
    .. ',' .. extra .. write.body)
  if write.guard.key then
    redis.call('SET', keys.idempotency(write.guard.key), cjson.encode({
      hash = write.guard.hash, revision = number.text(at), deleted = number.text(deleted),
      written = number.text(inserted), vector = node.vector_json(self.vector),
    }), 'EX', write.guard.intent and 60 or 600)
  end
  answer('written', number.text(at), number.text(deleted), '')
end

for _, write in ipairs(writes) do
  if not is_repeat(write.guard) then commit(write) end
end
redis.call('HSET', keys.meta, 'clock', number.text(self.clock))
redis.call('HSET', keys.vector, self.origin, number.text(self.vector[self.origin]))
reply[2] = node.vector_json(self.vector)
return reply
