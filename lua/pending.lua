-- pending: proxy mode: what the database is to be told next, oldest mark first.
--
-- KEYS 1 meta    hash
-- ARGV 1 known   highest timestamp this process knows to be stored
-- ARGV 2 count   at most so many tuples
-- REPLY  outcome "some" | "lost", then per tuple: member#field, and its state, "" for none. Tuples in an
--                open intent wait
--
-- @include dirty
-- @include keys
-- @include node
if not node.read(ARGV[1]) then return { 'lost' } end
local count, window, after = tonumber(ARGV[2]), 1000, 0
local reply = { 'some' }
repeat
  local names = redis.call('ZRANGE', keys.dirty, after, after + window - 1)
  for _, name in ipairs(names) do
    if #reply > 2 * count then break end
    if not dirty.is_intended(name) then
      local member, field = string.match(name, '^([^#]*)#(.*)$')
      reply[#reply + 1] = name
      reply[#reply + 1] = redis.call('HGET', keys.stored(member), field) or ''
    end
  end
  after = after + window
until #names < window or #reply > 1
return reply
