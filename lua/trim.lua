-- trim: take the oldest entries off the feed, and note what it no longer holds.
--
-- KEYS 1 meta      hash
-- ARGV 1 known     highest timestamp this process knows to be stored
-- ARGV 2 up_to     revision; entries above it stay
-- ARGV 3 count     how many entries go at most
-- REPLY  outcome   "trimmed" | "lost", then how many went, "more" if entries up to that revision
--                  are left, else "", the highest revision that was ever trimmed, floor as JSON.
--                  Fewer than `count` may go and more be left: the work of a call is bounded
-- FLAGS  allow-oom
--
-- @include floor
-- @include keys
-- @include node
local self = node.read(ARGV[1])
if not self then return { 'lost', '0', '', '0', '{}' } end
local count = tonumber(ARGV[3])
-- What was written since an incarnation is exposed may have to be set aside.
local exposed = redis.call('HGET', keys.meta, 'exposed')
local up_to = number.text(math.min(tonumber(ARGV[2]), exposed and tonumber(exposed) - 1 or math.huge)) .. '-0'
-- An entry comes with its whole text, which may be megabytes.
local step, byte_limit = 16, 8388608

local trimmed, timestamps = floor.read()
local start, gone, bytes, is_more = '-', 0, 0, true
while is_more and gone < count and bytes < byte_limit do
  local wanted = math.min(step, count - gone)
  local entries = redis.call('XRANGE', keys.feed, start, up_to, 'COUNT', wanted)
  for _, entry in ipairs(entries) do
    local fields = entry[2]
    local origin, timestamp = fields[2], tonumber(fields[4])
    -- What came by state transfer is of no origin, and ends no chain.
    if origin ~= 'transfer' and timestamp > (timestamps[origin] or 0) then
      timestamps[origin] = timestamp
    end
    start = '(' .. entry[1]
    trimmed = tonumber(string.match(entry[1], '^%d+'))
    bytes = bytes + #fields[8]
  end
  gone = gone + #entries
  is_more = #entries == wanted
end
if is_more then is_more = #redis.call('XRANGE', keys.feed, start, up_to, 'COUNT', 1) > 0 end

if gone > 0 then
  floor.write(trimmed, timestamps)
  redis.call('XTRIM', keys.feed, 'MINID', number.text(trimmed + 1) .. '-0')
end
return {
  'trimmed', number.text(gone), is_more and 'more' or '', number.text(trimmed),
  node.vector_json(timestamps),
}
