-- strategy: which sibling of a tuple is the winner; the rankings of core/conflict.py.
-- @include custom
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

  -- A ranking {name = the strategy's word, wins = whether one sibling ranks above another, or
  -- choose = the index of the winner, nil and a reason where there is none, keeps_losers}, or nil.
  local function ranking(name, priority, keeps_losers)
    -- Under lww losers may go at once: its order extends causality.
    if name == 'lww' then return { wins = newer, keeps_losers = keeps_losers, name = name } end
    if name == 'source_priority' then
      return { wins = by_priority(priority), keeps_losers = true, name = name }
    end
    if name == 'insert_wins' or name == 'delete_wins' then
      return { wins = by_operation(name == 'insert_wins'), keeps_losers = true, name = name }
    end
    if name == 'custom' and custom.given then
      local function choose(siblings) return custom.choose(siblings, priority) end
      return { choose = choose, keeps_losers = true, name = name }
    end
    return nil
  end

  -- rules: the JSON of core/conflict.py's Rules. keeps_losers: also under lww. Returns a function
  -- from resource and relation to the ranking of such tuples, or nil.
  function strategy.from(rules, keeps_losers)
    local decoded = cjson.decode(rules)
    local default = ranking(decoded.strategy, decoded.priority, keeps_losers)
    if not default then return nil end
    if not decoded.overrides then return function() return default end end
    local overrides = {}
    for index, override in ipairs(decoded.overrides) do
      override.ranking = ranking(override.strategy, decoded.priority, keeps_losers)
      if not override.ranking then return nil end
      overrides[index] = override
    end
    -- The first that fits decides.
    return function(resource, relation)
      local type = string.match(resource, '^[^:]*')
      for _, override in ipairs(overrides) do
        if override.relation == relation or override.resource_type == type then
          return override.ranking
        end
      end
      return default
    end
  end
end
