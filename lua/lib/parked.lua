-- parked: transactions that were received and cannot be applied yet, one of each origin: it holds
-- what follows. `parked`: origin -> JSON {timestamp, previous, reason, since}.
-- @include keys
-- @include number
local parked = {}
do
  local reasons, is_any, stored = {}, false, nil

  -- Of nodes that nobody knows here no more than this wait at once.
  parked.most = 1000

  function parked.count() return redis.call('HLEN', keys.parked) end

  function parked.holds(origin) return reasons[origin] ~= nil end

  -- Whether one of this origin waits already, sent before this script began.
  function parked.follows(origin)
    return redis.call('HEXISTS', keys.parked, origin) == 1
  end

  function parked.hold(origin)
    reasons[origin] = cjson.decode(redis.call('HGET', keys.parked, origin)).reason
    is_any = true
  end

  function parked.put(tx, now_us, reason)
    reasons[tx.origin], is_any = reason, true
    local before = redis.call('HGET', keys.parked, tx.origin)
    local since = before and cjson.decode(before).since or number.text(now_us)
    redis.call('HSET', keys.parked, tx.origin, cjson.encode({
      timestamp = number.text(tx.timestamp), previous = number.text(tx.previous),
      reason = reason, since = since,
    }))
  end

  -- Something of this origin has been applied.
  function parked.clear(origin)
    if stored == nil then stored = redis.call('EXISTS', keys.parked) == 1 end
    if stored and not reasons[origin] then redis.call('HDEL', keys.parked, origin) end
  end

  -- What a vector has reached in another way waits no longer.
  function parked.forget(vector)
    local flat = redis.call('HGETALL', keys.parked)
    for i = 1, #flat, 2 do
      if tonumber(cjson.decode(flat[i + 1]).timestamp) <= (vector[flat[i]] or 0) then
        redis.call('HDEL', keys.parked, flat[i])
      end
    end
  end

  -- What was parked by this script: JSON, origin to reason.
  function parked.json() return is_any and cjson.encode(reasons) or '{}' end
end
