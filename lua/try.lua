-- try: ask the deployment's own function about sets of siblings, each set in every order.
--
-- KEYS 1 meta      hash; not touched
-- ARGV 1 priority  JSON: node -> priority of its region
-- ARGV 2 sets      JSON: a list of sets, each a list of [timestamp, origin, "+" | "-", condition,
--                  expires_at], the last two "" for none
-- REPLY  outcome   "ok" | "wrong", then which set is the first that is wrong (from 1), and why: a
--                  text, or "" when the answer depends on the order; then two orders as JSON, lists
--                  of places in the set, and for each the place of the winner in the set, as text
--
-- @include custom
local priority = cjson.decode(ARGV[1])

-- Every order of the numbers up to n, the first one in sequence.
local function orders(n)
  local found = { {} }
  for number_of = 1, n do
    local longer = {}
    for _, order in ipairs(found) do
      for place = number_of, 1, -1 do
        local one = {}
        for i = 1, place - 1 do one[i] = order[i] end
        one[place] = number_of
        for i = place, number_of - 1 do one[i + 1] = order[i] end
        longer[#longer + 1] = one
      end
    end
    found = longer
  end
  return found
end

local orders_of = {}
local function text(n) return string.format('%d', n) end

for index, set in ipairs(cjson.decode(ARGV[2])) do
  orders_of[#set] = orders_of[#set] or orders(#set)
  local first, winner = orders_of[#set][1], nil
  for _, order in ipairs(orders_of[#set]) do
    local views = {}
    for place, which in ipairs(order) do
      local fields = set[which]
      views[place] = custom.view({
        at = tonumber(fields[1]), origin = fields[2], insert = fields[3] == '+',
        condition = fields[4] ~= '' and fields[4] or nil,
        expires_at = fields[5] ~= '' and fields[5] or nil,
      }, priority)
    end
    local chosen, reason = custom.ask(views)
    if not chosen then
      return { 'wrong', text(index), reason, cjson.encode(order), cjson.encode(order), '0', '0' }
    end
    winner = winner or order[chosen]
    if order[chosen] ~= winner then
      return { 'wrong', text(index), '', cjson.encode(first), cjson.encode(order), text(winner),
        text(order[chosen]) }
    end
  end
end
return { 'ok', '0', '', '[]', '[]', '0', '0' }
