-- strategy: whether one sibling ranks above another; the rankings of core/conflict.py.
-- @include version
local strategy = {}
do
  local function newer(a, b) return version.newer(a.at, a.origin, b.at, b.origin) end

  local function by_priority(priority)
    local function height(sibling)
      return priority[string.match(sibling.origin, '^[^.]*')] or 0
    end
    return function(a, b)
      local x, y = height(a), height(b)
      if x ~= y then return x > y end
      return newer(a, b)
    end
  end

  local function by_operation(insert)
    return function(a, b)
      if a.insert ~= b.insert then return a.insert == insert end
      return newer(a, b)
    end
  end

  -- rules: the JSON of core/conflict.py's Rules. Returns {wins = function, keeps_losers = bool,
  -- name = the strategy's word}, or nil.
  function strategy.from(rules)
    local decoded = cjson.decode(rules)
    local name = decoded.strategy
    -- Under lww losers may go at once: its order extends causality.
    if name == 'lww' then return { wins = newer, keeps_losers = false, name = name } end
    if name == 'source_priority' then
      return { wins = by_priority(decoded.priority), keeps_losers = true, name = name }
    end
    if name == 'insert_wins' or name == 'delete_wins' then
      return { wins = by_operation(name == 'insert_wins'), keeps_losers = true, name = name }
    end
    return nil
  end
end
