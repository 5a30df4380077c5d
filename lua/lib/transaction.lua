-- transaction: the wire format of core/wire.py, decoded and checked field by field.
-- @include number
local transaction = {}
do
  transaction.format = 1

  local function is_vector(value)
    if type(value) ~= 'table' then return nil end
    local vector = {}
    for origin, text in pairs(value) do
      local timestamp = number.parse(text)
      if type(origin) ~= 'string' or not timestamp then return nil end
      vector[origin] = timestamp
    end
    return vector
  end

  local function is_whole(value, below)
    return type(value) == 'number' and value >= 0 and value < below and value % 1 == 0
  end

  local function is_origin(value)
    return type(value) == 'string' and string.find(value, '^[a-z0-9-]+%.[a-z0-9]+$')
  end

  local function payload(value)
    if value == nil or value == '' then return true, nil end
    if type(value) ~= 'string' then return false, nil end
    return true, value
  end

  -- [sign, resource, relation, subject, bucket, hash, condition, expires_at]; the last two may
  -- be absent, or "" for none. Returns a change, or nil.
  local function change(fields)
    if type(fields) ~= 'table' then return nil end
    local sign, resource, relation, subject = fields[1], fields[2], fields[3], fields[4]
    if (sign ~= '+' and sign ~= '-') or type(resource) ~= 'string' or type(relation) ~= 'string'
      or type(subject) ~= 'string' or not string.find(resource, '^[^#:]+:[^#]+$')
      or string.find(relation, '#', 1, true)
      or not is_whole(fields[5], 4096) or not is_whole(fields[6], 1099511627776)
    then
      return nil
    end
    local condition, expires_at = nil, nil
    if fields[7] ~= nil then
      local condition_ok, expires_ok
      condition_ok, condition = payload(fields[7])
      expires_ok, expires_at = payload(fields[8])
      if not condition_ok or not expires_ok
        or (expires_at and not string.find(expires_at, '^%d+$'))
      then
        return nil
      end
    end
    return {
      insert = sign == '+', resource = resource, relation = relation, subject = subject,
      field = relation .. '#' .. subject, bucket = fields[5], hash = fields[6],
      condition = condition, expires_at = expires_at,
    }
  end

  -- The changes of a decoded JSON list, or nil and what is wrong.
  function transaction.changes(list)
    if type(list) ~= 'table' then return nil, 'changes is not a list' end
    -- An object decodes to a table as well, but not to one that is counted.
    if list[1] == nil and next(list) ~= nil then return nil, 'changes is not a list' end
    local decoded, seen = {}, list[2] and {}
    for index, fields in ipairs(list) do
      local one = change(fields)
      if not one then return nil, 'change ' .. index .. ' is malformed' end
      if seen then
        local name = one.resource .. '#' .. one.field
        if seen[name] then return nil, 'change ' .. index .. ' repeats a tuple' end
        seen[name] = true
      end
      decoded[index] = one
    end
    return decoded
  end

  -- A transaction of a format that this release does not read: enough of it to have it wait. Its
  -- `unknown` says why. nil when not even that can be read.
  local function unread(tx)
    local timestamp, previous = number.parse(tx.timestamp), number.parse(tx.previous)
    if not is_whole(tx.format, 1000000) or tx.format == 0 or not is_origin(tx.origin)
      or not timestamp or not previous or previous >= timestamp
    then
      return nil, 'unknown format'
    end
    return {
      origin = tx.origin, timestamp = timestamp, previous = previous,
      unknown = 'it has format ' .. number.text(tx.format) .. ', this release reads '
        .. transaction.format,
    }
  end

  -- A whole transaction from its JSON text, or nil and what is wrong.
  function transaction.decode(text)
    local ok, tx = pcall(cjson.decode, text)
    if not ok or type(tx) ~= 'table' then return nil, 'not JSON' end
    if tx.format ~= transaction.format then return unread(tx) end
    local timestamp, previous = number.parse(tx.timestamp), number.parse(tx.previous)
    local context = is_vector(tx.context)
    if not is_origin(tx.origin) or not timestamp or not previous or previous >= timestamp
      or not context or type(tx.tenant) ~= 'string' or not string.find(tx.tenant, '^[a-zA-Z0-9_-]+$')
    then
      return nil, 'origin, timestamp, previous, context or tenant is malformed'
    end
    local changes, wrong = transaction.changes(tx.changes)
    if not changes then return nil, wrong end
    local beyond = nil
    if tx.beyond ~= nil then
      if type(tx.beyond) ~= 'table' then return nil, 'beyond is malformed' end
      beyond = {}
      for index, entries in pairs(tx.beyond) do
        beyond[index] = is_vector(entries)
        if not beyond[index] then return nil, 'beyond is malformed' end
      end
    end
    return {
      origin = tx.origin, timestamp = timestamp, previous = previous, context = context,
      tenant = tx.tenant, changes = changes, beyond = beyond, text = text,
    }
  end
end
