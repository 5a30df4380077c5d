-- dirty: proxy mode: the tuples whose winner the database may not have. `dirty`: member#field, by the
-- revision at which it was marked; `intended`: how many open intents a tuple is in.
-- @include keys
-- @include number
local dirty = {}
do
  -- This node, where a database stands behind it, as `node.read` found it; marks are for it alone.
  dirty.self = nil

  function dirty.name(tenant, change)
    return keys.member(tenant, change.resource) .. '#' .. change.field
  end

  function dirty.mark(tenant, change)
    if not dirty.self then return end
    redis.call('ZADD', keys.dirty, number.text(dirty.self.clock), dirty.name(tenant, change))
  end

  function dirty.is_intended(name)
    return redis.call('HEXISTS', keys.intended, name) == 1
  end

  -- The winner of a state as a text that changes with every write; "" for no tuple.
  function dirty.version(of)
    local best = of and of.siblings[1]
    return best and number.text(best.at) .. ' ' .. best.origin or ''
  end
end
