-- intents: proxy mode: writes that the database is asked to do and this node has no version for yet.
-- `intents`: id -> JSON {tenant, at, names, seen, was, changes}, lists with an entry per tuple: its
-- member#field, its version then, what it showed then ("", or + condition newline expires_at), its row.
-- @include dirty
-- @include keys
local intents = {}
do
  -- Closes an intent. Returns what it had seen, name -> version; nil when it is not open.
  function intents.close(id)
    local text = redis.call('HGET', keys.intents, id)
    if not text then return nil end
    local intent, seen = cjson.decode(text), {}
    for index, name in ipairs(intent.names) do
      seen[name] = intent.seen[index]
      if redis.call('HINCRBY', keys.intended, name, -1) <= 0 then
        redis.call('HDEL', keys.intended, name)
      end
    end
    redis.call('HDEL', keys.intents, id)
    return seen
  end
end
