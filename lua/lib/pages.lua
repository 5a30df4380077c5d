-- pages: what has been taken over with pages of a state transfer and the vector has not reached:
-- bucket -> vector. All tuples of the bucket have it, also those that are absent.
-- @include keys
-- @include node
-- @include number
local pages = {}
do
  local is_any, read = nil, {}

  -- The vector of a bucket, or nil, which it nearly always is.
  function pages.of(bucket)
    if is_any == nil then is_any = redis.call('EXISTS', keys.beyond) == 1 end
    if not is_any then return nil end
    if read[bucket] == nil then
      local text = redis.call('HGET', keys.beyond, number.text(bucket))
      read[bucket] = text and node.vector_of(text) or false
    end
    return read[bucket] or nil
  end

  -- vector: what is above this node's; nil for nothing.
  function pages.set(bucket, vector)
    if vector then
      redis.call('HSET', keys.beyond, number.text(bucket), node.vector_json(vector))
    else
      redis.call('HDEL', keys.beyond, number.text(bucket))
    end
    is_any, read[bucket] = nil, nil
  end
end
