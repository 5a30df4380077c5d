-- node: what this node knows of itself: its origin, its clock, its vector.
-- The origin is read here and never taken from a caller.
-- @include dirty
-- @include keys
-- @include number
-- @include version
local node = {}
do
  -- known: the highest timestamp that the calling process knows to be stored. Returns nil when
  -- the store has less: it lost data, and nothing may be written.
  function node.read(known)
    local meta = redis.call('HMGET', keys.meta, 'origin', 'clock', 'exposed', 'behind', 'fenced',
      'joined', 'proxied')
    if not meta[1] or not meta[2] or tonumber(meta[2]) < tonumber(known) then return nil end
    local vector = {}
    local flat = redis.call('HGETALL', keys.vector)
    for i = 1, #flat, 2 do vector[flat[i]] = tonumber(flat[i + 1]) end
    local self = {
      origin = meta[1], clock = tonumber(meta[2]), vector = vector, exposed = meta[3] and true or false,
      behind = meta[4] and true or false,
      -- The region that is the primary instead; "" while writes are held for a promotion.
      fenced = meta[5],
      -- The rules have changed, and other nodes may have settled conflicts by the old ones.
      changing = meta[6] and true or false,
    }
    -- A database stands behind this node.
    dirty.self = meta[7] and self or nil
    return self
  end

  function node.tick(self, now_us, seen)
    self.clock = math.max(now_us, self.clock + 1, seen + 1)
    return self.clock
  end

  -- An empty transaction, with which an incarnation begins: whoever has heard of it then has its
  -- name in the vector.
  function node.begin(self, origin, at, format)
    self.origin, self.clock = origin, at
    self.vector[origin] = at
    redis.call('HSET', keys.meta, 'origin', origin, 'clock', number.text(at))
    -- The first incarnation of this data set.
    redis.call('HSETNX', keys.meta, 'born', origin)
    redis.call('HSET', keys.vector, origin, number.text(at))
    node.append(self, at, origin, at, 0, '{"format":' .. format
      .. ',"origin":"' .. origin .. '","timestamp":"' .. number.text(at)
      .. '","previous":"0","context":{},"tenant":"default","changes":[]}')
  end

  -- Whether nobody has anything of an incarnation: it is not in this vector, a newer one of its node
  -- is. To be asked when every node is known to have heard of every newest incarnation in it.
  function node.is_gone(vector, origin)
    if vector[origin] then return false end
    local prefix = string.match(origin, '^[^.]*%.')
    for other in pairs(vector) do
      if string.sub(other, 1, #prefix) == prefix and version.bytes_less(origin, other) then
        return true
      end
    end
    return false
  end

  -- A vector from its JSON, as Python encodes it.
  function node.vector_of(text)
    local vector = {}
    for origin, timestamp in pairs(cjson.decode(text)) do vector[origin] = tonumber(timestamp) end
    return vector
  end

  -- JSON of a vector; `without`: an origin that is left out.
  function node.vector_json(vector, without)
    local parts = {}
    for origin, timestamp in pairs(vector) do
      if origin ~= without then
        parts[#parts + 1] = '"' .. origin .. '":"' .. number.text(timestamp) .. '"'
      end
    end
    return '{' .. table.concat(parts, ',') .. '}'
  end

  function node.append(self, revision, origin, timestamp, changes, text, effects)
    local id = number.text(revision) .. '-0'
    if effects then
      redis.call('XADD', keys.feed, id, 'origin', origin, 'timestamp', number.text(timestamp),
        'changes', changes, 'transaction', text, 'effects', effects)
    else
      redis.call('XADD', keys.feed, id, 'origin', origin, 'timestamp', number.text(timestamp),
        'changes', changes, 'transaction', text)
    end
  end
end
