-- tuples: the stored states of tuples and everything that follows from them: the indexes by
-- subject, by type and by bucket, the digest, and the list of what collection must walk.
-- @include keys
-- @include number
-- @include state
-- @include digest
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
  function tuples.write(tenant, change, old, new)
    local key = keys.tuples(tenant, change.resource)
    redis.call('HSET', key, change.field, state.encode(new))
    if not old and redis.call('HLEN', key) == 1 then index_resource(tenant, change) end

    local before, after = old and old.siblings[1], new.siblings[1]
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
end
