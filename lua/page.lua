-- page: one page of the visible tuples of a tenant, with the vector it was read at.
--
-- KEYS 1 meta           hash
-- ARGV 1 tenant         tenant
-- ARGV 2 resource       type:id, or "" for any
-- ARGV 3 resource_type  type, or "" for any
-- ARGV 4 relation       relation, or "" for any
-- ARGV 5 subject        type:id or type:id#relation, or "" for any
-- ARGV 6 limit          how many tuples at most
-- ARGV 7 cursor         where the page before ended, or ""
-- REPLY  outcome        "page" | "lost", then the next cursor or "", the clock, the vector as JSON,
--                       then per tuple: resource, relation#subject, state. A page may be short
--                       of the limit and still have a next cursor: the work of a call is bounded
-- ERRORS BADCURSOR      not a cursor of this script
--
-- A small collection is read in order, and the cursor is the last name; a large one is read with
-- Redis's own scan. Either way what was there all along is found.
--
-- @include keys
-- @include node
-- @include version
local tenant, resource, resource_type = ARGV[1], ARGV[2], ARGV[3]
local relation, subject, limit = ARGV[4], ARGV[5], tonumber(ARGV[6])
local large, step, work_limit, buckets = 2000, 64, 20000, 4096

local self = node.read('0')
if not self then return { 'lost', '', '0', '{}' } end
local rows, work = {}, 0

local function is_full() return #rows >= 3 * limit end
local function room() return limit - #rows / 3 end

-- Any total order will do that stays the same on this server, and the native one is fast.
local function before(a, b)
  if a < b then return true end
  if b < a then return false end
  return version.bytes_less(a, b)
end

local function emit(of, field)
  local value = redis.call('HGET', keys.tuples(tenant, of), field)
  if value and string.sub(value, 1, 1) == '+' then
    rows[#rows + 1] = of
    rows[#rows + 1] = field
    rows[#rows + 1] = value
  end
end

-- The tuples of one resource. A source is {size, all, scan, visit}.
local function fields_of(of)
  local key = keys.tuples(tenant, of)
  return {
    size = function() return redis.call('HLEN', key) end,
    all = function() return redis.call('HKEYS', key) end,
    scan = function(at)
      local reply = redis.call('HSCAN', key, at, 'COUNT', 10)
      local names = {}
      for i = 1, #reply[2], 2 do names[#names + 1] = reply[2][i] end
      return reply[1], names
    end,
    visit = function(field)
      local has_relation, has_subject = string.match(field, '^([^#]*)#(.*)$')
      if (relation == '' or relation == has_relation)
        and (subject == '' or subject == has_subject)
      then
        emit(of, field)
      end
    end,
  }
end

-- The tuples of one subject, of any resource.
local function tuples_of_subject()
  local key = keys.subject(tenant, subject)
  local prefix = resource_type .. ':'
  return {
    size = function() return redis.call('SCARD', key) end,
    all = function() return redis.call('SMEMBERS', key) end,
    scan = function(at)
      local reply = redis.call('SSCAN', key, at, 'COUNT', 10)
      return reply[1], reply[2]
    end,
    visit = function(name)
      local of, has_relation = string.match(name, '^([^#]*)#(.*)$')
      if (relation == '' or relation == has_relation)
        and (resource_type == '' or string.sub(of, 1, #prefix) == prefix)
      then
        emit(of, has_relation .. '#' .. subject)
      end
    end,
  }
end

-- Visits a source from `from` on: "" is the start, ">NAME" in order behind NAME, "@N" scan at N.
-- Returns where to go on, or nil when nothing is left.
local function walk(source, from)
  local kind = string.sub(from, 1, 1)
  if kind == '@' or (kind == '' and room() >= step and source.size() > large) then
    local at = kind == '@' and string.sub(from, 2) or '0'
    repeat
      local held = #rows
      if held > 0 and room() < step then return '@' .. at end
      local behind, names = source.scan(at)
      work = work + #names + 1
      for _, name in ipairs(names) do source.visit(name) end
      if #rows > 3 * limit and held > 0 then
        -- A step finds more while Redis rebuilds its table: leave it to the next page.
        for i = #rows, held + 1, -1 do rows[i] = nil end
        return '@' .. at
      end
      at = behind
    until at == '0' or work > work_limit
    return at ~= '0' and '@' .. at or nil
  end
  local names, behind = source.all(), string.sub(from, 2)
  work = work + #names
  table.sort(names, before)
  for _, name in ipairs(names) do
    if kind == '' or before(behind, name) then
      if is_full() then return '>' .. behind end
      source.visit(name)
      kind, behind = '>', name
    end
  end
  return nil
end

-- Visits the resources in a sorted list, from `of` on. Returns resource and place to go on.
local function walk_resources(resources, of, from)
  table.sort(resources, before)
  for _, name in ipairs(resources) do
    if of == '' or not before(name, of) then
      if is_full() or work > work_limit then return name, name == of and from or '' end
      local rest = walk(fields_of(name), name == of and from or '')
      if rest then return name, rest end
    end
  end
  return nil
end

local function resources_in(bucket)
  local prefix = keys.member(tenant, resource_type == '' and '' or resource_type .. ':')
  local found = {}
  for _, member in ipairs(redis.call('SMEMBERS', keys.bucket(bucket))) do
    if string.sub(member, 1, #prefix) == prefix then
      found[#found + 1] = string.sub(member, #tenant + 2)
    end
    work = work + 1
  end
  return found
end

local cursor = { '', '', '' }
if ARGV[7] ~= '' then
  local ok, decoded = pcall(cjson.decode, ARGV[7])
  if not ok or type(decoded) ~= 'table' then return redis.error_reply('BADCURSOR not JSON') end
  for i = 1, 3 do
    if type(decoded[i]) ~= 'string' then return redis.error_reply('BADCURSOR not three texts') end
    cursor[i] = decoded[i]
  end
  local at = string.match(cursor[3], '^@(.*)$')
  if at and not (string.find(at, '^%d+$') and #at <= 19) then
    return redis.error_reply('BADCURSOR not a place')
  end
end

local next_cursor = nil
if resource ~= '' then
  local fits = resource_type == '' or string.sub(resource, 1, #resource_type + 1) == resource_type .. ':'
  if fits and relation ~= '' and subject ~= '' then
    emit(resource, relation .. '#' .. subject)
  elseif fits then
    local rest = walk(fields_of(resource), cursor[3])
    next_cursor = rest and { '', '', rest }
  end
elseif subject ~= '' then
  local rest = walk(tuples_of_subject(), cursor[3])
  next_cursor = rest and { '', '', rest }
elseif cursor[1] == 'type'
  or (cursor[1] == '' and resource_type ~= ''
    and redis.call('SCARD', keys.type(tenant, resource_type)) <= large)
then
  local of, rest = walk_resources(redis.call('SMEMBERS', keys.type(tenant, resource_type)),
    cursor[2], cursor[3])
  next_cursor = of and { 'type', of, rest }
else
  local bucket, of, from = tonumber(cursor[1]) or 0, cursor[2], cursor[3]
  while bucket < buckets do
    if is_full() or work > work_limit then break end
    local rest
    of, rest = walk_resources(resources_in(bucket), of, from)
    if of then
      from = rest
      break
    end
    bucket, of, from = bucket + 1, '', ''
    work = work + 1
  end
  if bucket < buckets then next_cursor = { string.format('%d', bucket), of or '', from or '' } end
end

local reply = {
  'page', next_cursor and cjson.encode(next_cursor) or '', number.text(self.clock),
  node.vector_json(self.vector),
}
for i = 1, #rows do reply[i + 4] = rows[i] end
return reply
