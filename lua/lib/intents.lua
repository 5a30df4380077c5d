-- intents: proxy mode: writes that the database is asked to do and this node has no version for yet.
-- `intents`: id -> JSON {tenant, at, revision, before, filter, names, seen, was, sure, changes}: the
-- wall clock, the clock of this node and the schema of the database when it was noted, whether it is a
-- deletion by filter, then lists with an entry per tuple: its member#field, its version then, what it
-- showed then ("", or + condition newline expires_at), whether the database had just that, its row.
-- @include dirty
-- @include keys
local intents = {}
do
  -- What was noted under an id; nil when it is not open.
  function intents.open(id)
    local text = redis.call('HGET', keys.intents, id)
    if not text then return nil end
    local intent = cjson.decode(text)
    intent.id = id
    return intent
  end

  local function leave(name)
    if redis.call('HINCRBY', keys.intended, name, -1) > 0 then return false end
    redis.call('HDEL', keys.intended, name)
    return true
  end

  -- in_doubt: the database may have done it, or may do it yet: it is told once more what is right.
  function intents.close(intent, in_doubt)
    redis.call('HDEL', keys.intents, intent.id)
    for _, name in ipairs(intent.names) do
      leave(name)
      if in_doubt then dirty.again(name, 0) end
    end
    if not intent.filter then return end
    if in_doubt then
      for _, name in ipairs(redis.call('SMEMBERS', keys.beside)) do dirty.again(name, 0) end
    end
    if leave(dirty.filters) then redis.call('DEL', keys.beside) end
  end

  -- name -> the version it had.
  function intents.seen(intent)
    local seen = {}
    for index, name in ipairs(intent.names) do seen[name] = intent.seen[index] end
    return seen
  end
end
