-- check: what the scripts rely on holds on this server.
--
-- KEYS 1 meta      hash
-- ARGV 1 hash      a tuple hash
-- ARGV 2 at        a timestamp
-- ARGV 3 origin    an origin
-- ARGV 4 mix       the digest of these three, as the caller computes it
-- REPLY  outcome   "ok" | "broken", then what is wrong
--
-- @include digest
-- @include number
-- @include version
local function wrong(what) return { 'broken', what } end

if number.text(9007199254740991) ~= '9007199254740991' then return wrong('numbers lose digits') end
if number.parse('9007199254740992') then return wrong('numbers from 2^53 on pass') end
if cjson.decode(cjson.encode({ a = { '1', 'é"\\' } })).a[2] ~= 'é"\\' then
  return wrong('JSON does not come back as it was')
end
if not version.bytes_less('B', 'a') or version.bytes_less('é', 'z') then
  return wrong('texts are not compared by bytes')
end
if number.text(digest.mix(tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3])) ~= ARGV[4] then
  return wrong('digests differ from those of the caller')
end
return { 'ok', '' }
