-- floor: what the feed no longer holds.
-- @include keys
-- @include number
local floor = {}
do
  -- The highest revision that was trimmed, and origin -> timestamp up to which the feed does not
  -- hold all transactions of that origin.
  function floor.read()
    local timestamps = {}
    local flat = redis.call('HGETALL', keys.floor)
    for i = 1, #flat, 2 do timestamps[flat[i]] = tonumber(flat[i + 1]) end
    return tonumber(redis.call('HGET', keys.meta, 'trimmed') or '0'), timestamps
  end

  function floor.write(trimmed, timestamps)
    for origin, timestamp in pairs(timestamps) do
      redis.call('HSET', keys.floor, origin, number.text(timestamp))
    end
    redis.call('HSET', keys.meta, 'trimmed', number.text(trimmed))
  end
end
