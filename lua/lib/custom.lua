-- custom: the function of the deployment's own script, which chooses a winner.
-- The loader puts the script behind this library: it sets `custom.given`, a function, and where its
-- text lies. `core/script.py` has checked the text, and put calls of `spend` and `less` into it.
-- @include version
local custom = {}
do
  -- Beyond so many steps a script is taken for one that does not end; nothing can stop it otherwise.
  local most, steps = 10000, 0

  function custom.spend()
    steps = steps + 1
    if steps > most then error('it takes more than ' .. most .. ' steps', 2) end
  end

  -- Lua's own `<` on text follows the locale of the server.
  local function less(a, b)
    local x, y = type(a), type(b)
    if x == 'string' and y == 'string' then return version.bytes_less(a, b) end
    -- 3: where the script compares.
    if x ~= 'number' or y ~= 'number' then error('attempt to compare ' .. x .. ' with ' .. y, 3) end
    return a < b
  end

  function custom.less(a, b) return (less(a, b)) end

  function custom.more(a, b) return (less(b, a)) end

  function custom.at_most(a, b)
    if type(a) == 'number' and type(b) == 'number' then return a <= b end
    return not less(b, a)
  end

  function custom.at_least(a, b)
    if type(a) == 'number' and type(b) == 'number' then return a >= b end
    return not less(a, b)
  end

  -- Whether the write a comes after the write b: a total order, the same everywhere.
  function custom.newer(a, b)
    if type(a) ~= 'table' or type(b) ~= 'table' then error('newer compares two siblings', 2) end
    return version.newer(a.timestamp, a.origin, b.timestamp, b.origin)
  end

  -- What a script sees of a sibling.
  function custom.view(sibling, priority)
    local node = string.match(sibling.origin, '^[^.]*')
    return {
      timestamp = sibling.at, origin = sibling.origin, node = node,
      operation = sibling.insert and 'insert' or 'delete', condition = sibling.condition,
      expires_at = sibling.expires_at and tonumber(sibling.expires_at), priority = priority[node] or 0,
    }
  end

  -- make: what the script is inside of; it returns the function.
  function custom.load(make)
    local ok, given = pcall(make)
    if ok then return given end
    return function() error(given, 0) end
  end

  local function explained(failure)
    local line, text = string.match(tostring(failure), ':(%d+): (.*)$')
    if not line then return tostring(failure) end
    return custom.file .. ':' .. string.format('%d', tonumber(line) - custom.line) .. ': ' .. text
  end

  -- Which of these views is the winner: its index, or nil and why there is none.
  function custom.ask(views)
    steps = 0
    local ok, index = pcall(custom.given, views)
    if not ok then return nil, explained(index) end
    if type(index) ~= 'number' or not views[index] then
      return nil, custom.file .. ' returns ' .. (type(index) == 'number' and tostring(index)
        or type(index)) .. ' for ' .. #views .. ' siblings, not the index of one'
    end
    return index
  end

  -- The same for siblings, in the order in which they were written, whatever theirs is.
  function custom.choose(siblings, priority)
    local order, views = {}, {}
    for index in ipairs(siblings) do order[index] = index end
    table.sort(order, function(i, j)
      local a, b = siblings[i], siblings[j]
      return version.newer(b.at, b.origin, a.at, a.origin)
    end)
    for place, index in ipairs(order) do views[place] = custom.view(siblings[index], priority) end
    local chosen, reason = custom.ask(views)
    return chosen and order[chosen], reason
  end
end
