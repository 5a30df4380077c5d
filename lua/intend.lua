-- intend: proxy mode: note what the database is going to be asked to change, before it is asked.
--
-- KEYS 1 meta      hash
-- ARGV 1 now_us    wall clock, microseconds
-- ARGV 2 known     highest timestamp this process knows to be stored
-- ARGV 3 id        name of the intent, never used before
-- ARGV 4 body      `"tenant":"…","changes":[…]}`, as the write script takes it
-- ARGV 5 before    the schema that the database has now, where it is going to be written, else ""
-- ARGV 6 filter    "1": these are what a filter matches now, and the database is given the filter
-- REPLY  outcome   "noted" | "behind" | "fenced" | "lost", then with "fenced" the region that is the
--                  primary, "" while writes are held
-- ERRORS BADWRITE  the body is malformed; nothing was written
--
-- @include dirty
-- @include intents
-- @include keys
-- @include node
-- @include number
-- @include transaction
-- @include tuples
local self = node.read(ARGV[2])
if not self then return { 'lost', '' } end
if self.behind then return { 'behind', '' } end
if self.fenced then return { 'fenced', self.fenced } end
local ok, body = pcall(cjson.decode, '{' .. ARGV[4])
if not ok then return redis.error_reply('BADWRITE body is not JSON') end
local changes, wrong = transaction.changes(body.changes)
local is_filter = ARGV[6] == '1'
if not changes or not (changes[1] or is_filter) then
  return redis.error_reply('BADWRITE ' .. (wrong or 'no change'))
end

local names, seen, was, sure = {}, {}, {}, {}
for index, change in ipairs(changes) do
  names[index] = dirty.name(body.tenant, change)
  local old = tuples.read(body.tenant, change)
  seen[index] = dirty.version(old)
  local best = old and old.siblings[1]
  was[index] = best and best.insert
    and '+' .. (best.condition or '') .. '\n' .. (best.expires_at or '') or ''
  sure[index] = dirty.is_told(names[index])
  redis.call('HINCRBY', keys.intended, names[index], 1)
end
if is_filter then redis.call('HINCRBY', keys.intended, dirty.filters, 1) end
redis.call('HSET', keys.intents, ARGV[3], cjson.encode({
  tenant = body.tenant, at = ARGV[1], revision = number.text(self.clock), before = ARGV[5],
  filter = is_filter,
  names = names, seen = seen, was = was, sure = sure, changes = body.changes,
}))
return { 'noted', '' }
