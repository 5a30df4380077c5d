-- version: the order of versions (timestamp, origin), the same on every server.
local version = {}
do
  -- Lua's own `<` on text follows the locale of the server; bytes do not.
  function version.bytes_less(a, b)
    for i = 1, math.min(#a, #b) do
      local x, y = string.byte(a, i), string.byte(b, i)
      if x ~= y then return x < y end
    end
    return #a < #b
  end

  -- Whether (at_a, origin_a) comes after (at_b, origin_b): timestamp, then node, then incarnation.
  function version.newer(at_a, origin_a, at_b, origin_b)
    if at_a ~= at_b then return at_a > at_b end
    if origin_a == origin_b then return false end
    local node_a, incarnation_a = string.match(origin_a, '^([^.]*)%.(.*)$')
    local node_b, incarnation_b = string.match(origin_b, '^([^.]*)%.(.*)$')
    if node_a ~= node_b then return version.bytes_less(node_b, node_a) end
    return version.bytes_less(incarnation_b, incarnation_a)
  end
end
