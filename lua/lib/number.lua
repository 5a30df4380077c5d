-- number: whole numbers below 2^53 as text and back. `..` and `tostring` keep 14 digits only.
local number = {}
do
  local limit = 9007199254740992

  -- Exact where the C type long has 64 bits, which `check` makes sure of.
  function number.text(n) return string.format('%d', n) end

  -- The number that a text of digits stands for; nil for anything else.
  function number.parse(text)
    if type(text) ~= 'string' or not string.find(text, '^%d+$') then return nil end
    local n = tonumber(text)
    if n >= limit then return nil end
    return n
  end
end
