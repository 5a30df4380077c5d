-- rerank: choose winners anew among stored siblings, because the rules have changed; and the
-- beginning and the end of such a change.
--
-- KEYS 1 meta         hash
-- ARGV 1 now_us       wall clock, microseconds
-- ARGV 2 rules        JSON of the conflict strategy
-- ARGV 3 tuples       JSON: a list of [name as in `unsettled`, bucket, hash]
-- ARGV 4 fingerprint  "": more tuples follow, and whoever opens the data meanwhile begins anew; else
--                     of these rules: all tuples are done
-- REPLY  outcome      "reranked" | "undecided" | "lost", then how many tuples show something else;
--                     with "undecided" a custom script has failed, nothing was written, and the
--                     name of the tuple and the reason follow
-- ERRORS BADRULES     not a strategy that this release knows
--
-- @include floor
-- @include keys
-- @include node
-- @include shown
-- @include strategy
-- @include tuples
local now_us = tonumber(ARGV[1])
local self = node.read('0')
if not self then return { 'lost', '0' } end
local rules_of = strategy.from(ARGV[2], true)
if not rules_of then return redis.error_reply('BADRULES unknown strategy') end

local revision = node.tick(self, now_us, 0)
local plan, failed = {}, nil

-- The new state of a tuple that another sibling wins; nil where nothing changes.
local function reranked(name, old)
  if not old or not old.siblings[2] then return nil end
  local tenant, change = tuples.named(string.match(name, '^([^#]*)#(.*)$'))
  local new, reason = state.rerank(old, rules_of(change.resource, change.relation), revision)
  if not new then
    failed = failed or { 'undecided', '0', name, reason }
  elseif new.siblings[1] ~= old.siblings[1] then
    return new, tenant, change
  end
  return nil
end

for _, row in ipairs(cjson.decode(ARGV[3])) do
  local tenant, change = tuples.named(string.match(row[1], '^([^#]*)#(.*)$'))
  local old = tuples.read(tenant, change)
  local new = reranked(row[1], old)
  if new then
    change.bucket, change.hash = row[2], row[3]
    plan[#plan + 1] = { tenant = tenant, change = change, old = old, new = new }
  end
end

-- What would come back if this incarnation had to set its writes aside.
local undone = {}
local flat = ARGV[4] ~= '' and redis.call('HGETALL', keys.undo) or {}
for i = 1, #flat, 2 do
  local place, text = string.match(flat[i + 1], '^(%d+ %d+ )(.*)$')
  local new = text ~= '' and reranked(string.gsub(flat[i], '\n', '#', 1), state.decode(text))
  if new then undone[flat[i]] = place .. state.encode(new) end
end
if failed then return failed end

for _, step in ipairs(plan) do
  tuples.write(step.tenant, step.change, step.old, step.new)
  shown.note(step.tenant, step.change, step.old.siblings[1], step.new.siblings[1])
end
for name, text in pairs(undone) do redis.call('HSET', keys.undo, name, text) end
shown.append(self, now_us, revision)
redis.call('HSET', keys.meta, 'clock', number.text(self.clock), 'rules', ARGV[4])
if ARGV[4] ~= '' then
  -- Others have settled conflicts by other rules, and their feeds do not say so: only states do.
  -- This node knows what it has settled itself.
  local node_id = redis.call('HGET', keys.meta, 'node')
  redis.call('HSET', keys.meta, 'joined', cjson.encode({ node_id }))
  redis.call('HDEL', keys.meta, 'transfer')
  floor.write(floor.read(), self.vector)
end
return { 'reranked', number.text(#plan) }
