-- More deletes than inserts: the newest delete. Otherwise the newest insert.
-- Sound although a third write can turn it over: it depends on nothing but the set.
return function(siblings)
  local deletes = 0
  for _, one in ipairs(siblings) do
    if one.operation == 'delete' then deletes = deletes + 1 end
  end
  local wanted = 2 * deletes > #siblings and 'delete' or 'insert'
  local best
  for index, one in ipairs(siblings) do
    if one.operation == wanted and (best == nil or newer(one, siblings[best])) then best = index end
  end
  return best
end
