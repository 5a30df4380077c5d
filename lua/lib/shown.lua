-- shown: what changed visibly here and came in no transaction, told to watchers: entries of the feed
-- of the origin `transfer`, one per tenant, which are never shipped.
-- @include node
-- @include number
-- @include transaction
local shown = { appeared = 0, disappeared = 0 }
do
  local told, tenants = {}, {}

  -- before, after: the winner of a tuple, nil for none. change: as in `tuples`.
  function shown.note(tenant, change, before, after)
    local was, is = before and before.insert, after and after.insert
    if not was and not is then return end
    if was and is and before.at == after.at and before.origin == after.origin
      and before.condition == after.condition and before.expires_at == after.expires_at
    then
      return
    end
    local count = is and 'appeared' or 'disappeared'
    shown[count] = shown[count] + 1
    if not told[tenant] then
      told[tenant] = {}
      tenants[#tenants + 1] = tenant
    end
    local row = { is and '+' or '-', change.resource, change.relation, change.subject,
      change.bucket, change.hash }
    if is and (after.condition or after.expires_at) then
      row[7], row[8] = after.condition or '', after.expires_at or ''
    end
    told[tenant][#told[tenant] + 1] = row
  end

  local function change_json(row)
    local parts = {}
    for index, value in ipairs(row) do
      parts[index] = type(value) == 'number' and number.text(value) or cjson.encode(value)
    end
    return '[' .. table.concat(parts, ',') .. ']'
  end

  -- Appends the entries; the first one has this revision.
  function shown.append(self, now_us, revision)
    for index, tenant in ipairs(tenants) do
      local at = index == 1 and revision or node.tick(self, now_us, 0)
      local rows = {}
      for i, row in ipairs(told[tenant]) do rows[i] = change_json(row) end
      node.append(self, at, 'transfer', at, #rows, '{"format":' .. transaction.format
        .. ',"origin":"transfer","timestamp":"' .. number.text(at)
        .. '","previous":"0","context":{},"tenant":"' .. tenant .. '","changes":['
        .. table.concat(rows, ',') .. ']}')
    end
  end
end
