-- members: keep which nodes the topology has, and which of those it had were removed.
--
-- KEYS 1 meta     hash
-- ARGV 1 known    highest timestamp this process knows to be stored
-- ARGV 2 members  JSON: the list of all node ids, sorted
-- ARGV 3 removed  JSON: node -> newest incarnation, of nodes that others say were removed
-- REPLY  outcome  "kept" | "lost", then the same as ARGV 3 of all that is known here, and the nodes
--                 that this call has found to be missing, each with a blank behind it
-- FLAGS  allow-oom
--
-- @include keys
-- @include node
-- @include version
local self = node.read(ARGV[1])
if not self then return { 'lost', '{}', '' } end

local removed = {}
local flat = redis.call('HGETALL', keys.removed)
for i = 1, #flat, 2 do removed[flat[i]] = flat[i + 1] end

local function note(name, origin)
  if removed[name] and not version.bytes_less(removed[name], origin) then return end
  removed[name] = origin
  redis.call('HSET', keys.removed, name, origin)
end

local gone = ''
local before = redis.call('HGET', keys.meta, 'members')
if before ~= ARGV[2] then
  local present = {}
  for _, name in ipairs(cjson.decode(ARGV[2])) do present[name] = true end
  for _, name in ipairs(before and cjson.decode(before) or {}) do
    if not present[name] then
      gone = gone .. name .. ' '
      for origin in pairs(self.vector) do
        if string.match(origin, '^[^.]*') == name then note(name, origin) end
      end
      -- What it once had, and how far it had come, is nothing to the node that takes its place.
      redis.call('DEL', keys.known(name))
      redis.call('HDEL', keys.cursors, name)
    end
  end
  redis.call('HSET', keys.meta, 'members', ARGV[2])
end
for name, origin in pairs(cjson.decode(ARGV[3])) do note(name, origin) end

local parts = {}
for name, origin in pairs(removed) do parts[#parts + 1] = '"' .. name .. '":"' .. origin .. '"' end
return { 'kept', '{' .. table.concat(parts, ',') .. '}', gone }
