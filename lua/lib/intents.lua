-- intents: proxy mode: writes that the database is asked to do and this node has no version for yet.
-- `intents`: id -> JSON {tenant, at, revision, before, names, seen, was, sure, changes}: the wall
-- clock, the clock of this node and the schema of the database when it was noted, then lists with an
-- entry per tuple: its member#field, its version then, what it showed then ("", or + condition newline
-- expires_at), whether the database had just that, its row.
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

  function intents.close(intent)
    for _, name in ipairs(intent.names) do
      if redis.call('HINCRBY', keys.intended, name, -1) <= 0 then
        redis.call('HDEL', keys.intended, name)
      end
    end
    redis.call('HDEL', keys.intents, intent.id)
  end

  -- name -> the version it had.
  function intents.seen(intent)
    local seen = {}
    for index, name in ipairs(intent.names) do seen[name] = intent.seen[index] end
    return seen
  end
end
