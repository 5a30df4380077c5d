-- undo: what tuples were before the writes of an incarnation that may turn out to know too little.
-- `undo`: member, newline, field -> bucket, hash and the state's text, or "" for no tuple.
-- @include keys
-- @include number
-- @include state
-- @include tuples
local undo = {}
do
  -- The first time it is written counts.
  function undo.note(tenant, change, old)
    redis.call('HSETNX', keys.undo, keys.member(tenant, change.resource) .. '\n' .. change.field,
      number.text(change.bucket) .. ' ' .. number.text(change.hash) .. ' '
        .. (old and state.encode(old) or ''))
  end

  -- Everything as it was.
  function undo.restore()
    local flat = redis.call('HGETALL', keys.undo)
    for i = 1, #flat, 2 do
      local member, field = string.match(flat[i], '^([^\n]*)\n(.*)$')
      local bucket, hash, text = string.match(flat[i + 1], '^(%d+) (%d+) (.*)$')
      local tenant, change = tuples.named(member, field)
      change.bucket, change.hash = tonumber(bucket), tonumber(hash)
      local now = tuples.read(tenant, change)
      if text ~= '' then
        tuples.write(tenant, change, now, state.decode(text))
      elseif now then
        tuples.remove(tenant, change, now)
      end
    end
    redis.call('DEL', keys.undo)
  end
end
