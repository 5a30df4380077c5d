-- epoch: which region is the primary, by the last promotion that was heard of.
-- @include keys
-- @include node
-- @include number
-- @include version
local epoch = {}
do
  -- The stored one: its number, its region, and the vector of the node that raised it; or nil.
  function epoch.read()
    local text = redis.call('HGET', keys.meta, 'epoch')
    if not text then return nil end
    local stored = cjson.decode(text)
    for origin, timestamp in pairs(stored.vector) do stored.vector[origin] = tonumber(timestamp) end
    return stored
  end

  function epoch.text(of)
    return '{"number":' .. number.text(of.number) .. ',"region":"' .. of.region .. '","vector":'
      .. node.vector_json(of.vector) .. '}'
  end

  function epoch.write(new) redis.call('HSET', keys.meta, 'epoch', epoch.text(new)) end

  function epoch.less(a, b)
    if a.number ~= b.number then return a.number < b.number end
    return version.bytes_less(a.region, b.region)
  end
end
