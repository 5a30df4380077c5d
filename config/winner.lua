-- A custom conflict strategy, for `conflict_resolution: custom` with `custom_script: winner.lua`:
-- the region that is later in region_priorities wins; within it a delete; then the last write.
-- docs/conflicts.md says what a script may do.

local function beats(a, b)
  if a.priority ~= b.priority then return a.priority > b.priority end
  if a.operation ~= b.operation then return a.operation == 'delete' end
  return newer(a, b)
end

return function(siblings)
  local best = 1
  for index, sibling in ipairs(siblings) do
    if beats(sibling, siblings[best]) then best = index end
  end
  return best
end
