-- dirty: proxy mode: the tuples whose winner the database may not have. `dirty`: member#field, by the
-- revision at which it was first marked; `intended`: how many open intents a tuple is in; `again`:
-- tuples that are to be told once more, by the wall clock from when on, whatever the database says
-- before; `telling`: those that the database is being told; `beside`: those that it was made to have
-- while a deletion by filter was open, which may come late and take them along.
-- @include keys
-- @include number
-- @include state
local dirty = {}
do
  -- This node, where a database stands behind it, as `node.read` found it; marks are for it alone.
  dirty.self = nil

  function dirty.name(tenant, change)
    return keys.member(tenant, change.resource) .. '#' .. change.field
  end

  -- The oldest mark stays: whoever waits for that revision waits for it.
  function dirty.put(name)
    redis.call('ZADD', keys.dirty, 'NX', number.text(dirty.self.clock), name)
  end

  function dirty.mark(tenant, change)
    if dirty.self then dirty.put(dirty.name(tenant, change)) end
  end

  -- The latest moment stays: until then the database may still do what it was asked before.
  function dirty.again(name, at_us)
    dirty.put(name)
    local before = redis.call('ZSCORE', keys.again, name)
    if not before or tonumber(before) < at_us then
      redis.call('ZADD', keys.again, number.text(at_us), name)
    end
  end

  -- Under this name, which no tuple has, `intended` counts the open deletions by filter.
  dirty.filters = '*'

  function dirty.has(name)
    if redis.call('HEXISTS', keys.intended, dirty.filters) == 1 then
      redis.call('SADD', keys.beside, name)
    end
  end

  function dirty.is_intended(name)
    return redis.call('HEXISTS', keys.intended, name) == 1
  end

  -- Whether the database is known to have what the tuple shows.
  function dirty.is_told(name)
    return not redis.call('ZSCORE', keys.dirty, name) and not redis.call('ZSCORE', keys.again, name)
      and redis.call('HEXISTS', keys.held, name) == 0
  end

  -- The text of a tuple's state, or nil.
  function dirty.text(name)
    local member, field = string.match(name, '^([^#]*)#(.*)$')
    return redis.call('HGET', keys.stored(member), field) or nil
  end

  function dirty.state(name)
    local text = dirty.text(name)
    return text and state.decode(text)
  end

  -- The winner of a state as a text that changes with every write; "" for no tuple.
  function dirty.version(of)
    local best = of and of.siblings[1]
    return best and number.text(best.at) .. ' ' .. best.origin or ''
  end
end
