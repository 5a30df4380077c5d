-- tuples: the stored states of tuples and everything that follows from them: the indexes by
-- subject, by type and by bucket, the digest, and the list of what collection must walk.
-- @include keys
-- @include number
-- @include state
-- @include digest
-- @include dirty
local tuples = {}
do
  -- Returns the decoded state, or nil.
  function tuples.read(tenant, change)
    local value = redis.call('HGET', keys.tuples(tenant, change.resource), change.field)
    return value and state.decode(value) or nil
  end

  local function index_resource(tenant, change)
    local type = string.match(change.resource, '^[^:]*')
    local resources = keys.type(tenant, type)
    if redis.call('SADD', resources, change.resource) == 1
      and redis.call('SCARD', resources) == 1
    then
      redis.call('SADD', keys.types(tenant), type)
      redis.call('SADD', keys.tenants, tenant)
    end
    redis.call('SADD', keys.bucket(change.bucket), keys.member(tenant, change.resource))
  end

  -- change: {resource, relation, subject, field = relation#subject, bucket, hash}.
  -- old, new: states, the first nil for a tuple that was not there. is_applied: the database behind
  -- this node, if there is one, has what `new` shows.
  function tuples.write(tenant, change, old, new, is_applied)
    local key = keys.tuples(tenant, change.resource)
    redis.call('HSET', key, change.field, state.encode(new))
    if not old and redis.call('HLEN', key) == 1 then index_resource(tenant, change) end

    local before, after = old and old.siblings[1], new.siblings[1]
    if not is_applied and not (before and before.at == after.at and before.origin == after.origin) then
      dirty.mark(tenant, change)
    end
    local amount = 0
    if before and before.insert then amount = -digest.mix(change.hash, before.at, before.origin) end
    if after.insert then amount = amount + digest.mix(change.hash, after.at, after.origin) end
    digest.add(change.bucket, amount)

    local was_visible = before and before.insert or false
    if after.insert ~= was_visible then
      redis.call(after.insert and 'SADD' or 'SREM', keys.subject(tenant, change.subject),
        change.resource .. '#' .. change.relation)
    end

    local settled = state.is_settled(new)
    if not settled then
      local newest = 0
      for _, sibling in ipairs(new.siblings) do newest = math.max(newest, sibling.at) end
      redis.call('ZADD', keys.unsettled, number.text(newest),
        keys.member(tenant, change.resource) .. '#' .. change.field)
    elseif old and not state.is_settled(old) then
      redis.call('ZREM', keys.unsettled, keys.member(tenant, change.resource) .. '#' .. change.field)
    end
  end

  local function unindex_resource(tenant, change)
    local type = string.match(change.resource, '^[^:]*')
    local resources = keys.type(tenant, type)
    redis.call('SREM', keys.bucket(change.bucket), keys.member(tenant, change.resource))
    redis.call('SREM', resources, change.resource)
    if redis.call('EXISTS', resources) == 0 then
      redis.call('SREM', keys.types(tenant), type)
      if redis.call('EXISTS', keys.types(tenant)) == 0 then
        redis.call('SREM', keys.tenants, tenant)
      end
    end
  end

  -- A tuple goes, with everything that followed from it. A hidden one needs no hash.
  function tuples.remove(tenant, change, old)
    local key, best = keys.tuples(tenant, change.resource), old.siblings[1]
    redis.call('HDEL', key, change.field)
    if best.insert then dirty.mark(tenant, change) end
    if redis.call('EXISTS', key) == 0 then unindex_resource(tenant, change) end
    if best.insert then
      digest.add(change.bucket, -digest.mix(change.hash, best.at, best.origin))
      redis.call('SREM', keys.subject(tenant, change.subject),
        change.resource .. '#' .. change.relation)
    end
    if not state.is_settled(old) then
      redis.call('ZREM', keys.unsettled, keys.member(tenant, change.resource) .. '#' .. change.field)
    end
  end

  -- A tuple as it should be, and every index that follows from it, whatever they were; new: its
  -- state, nil for none. Not the digest.
  function tuples.mend(tenant, change, new)
    local key, best = keys.tuples(tenant, change.resource), new and new.siblings[1]
    dirty.mark(tenant, change)
    if new then
      redis.call('HSET', key, change.field, state.encode(new))
      index_resource(tenant, change)
      redis.call('SADD', keys.types(tenant), (string.match(change.resource, '^[^:]*')))
      redis.call('SADD', keys.tenants, tenant)
    else
      redis.call('HDEL', key, change.field)
      if redis.call('EXISTS', key) == 0 then unindex_resource(tenant, change) end
    end
    redis.call(best and best.insert and 'SADD' or 'SREM', keys.subject(tenant, change.subject),
      change.resource .. '#' .. change.relation)
    local name = keys.member(tenant, change.resource) .. '#' .. change.field
    if new and not state.is_settled(new) then
      local newest = 0
      for _, sibling in ipairs(new.siblings) do newest = math.max(newest, sibling.at) end
      redis.call('ZADD', keys.unsettled, number.text(newest), name)
    else
      redis.call('ZREM', keys.unsettled, name)
    end
  end

  -- A resource of a bucket of which nothing is stored any more.
  function tuples.forget(member, bucket)
    if redis.call('EXISTS', keys.stored(member)) == 1 then return end
    local tenant, resource = string.match(member, '^([^/]*)/(.*)$')
    unindex_resource(tenant, { resource = resource, bucket = bucket })
  end

  -- A tuple that shows the same as before and remembers less.
  function tuples.settle(tenant, change, old, new)
    redis.call('HSET', keys.tuples(tenant, change.resource), change.field, state.encode(new))
    if state.is_settled(new) and not state.is_settled(old) then
      redis.call('ZREM', keys.unsettled, keys.member(tenant, change.resource) .. '#' .. change.field)
    end
  end

  -- The parts of the names under which a tuple is stored; no hash and no bucket, which no script
  -- can compute.
  function tuples.named(member, field)
    local tenant, resource = string.match(member, '^([^/]*)/(.*)$')
    local relation, subject = string.match(field, '^([^#]*)#(.*)$')
    if not relation then relation, subject = field, '' end -- written behind our back
    return tenant, { resource = resource, relation = relation, subject = subject, field = field }
  end
end
