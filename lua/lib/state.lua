-- state: the state of one tuple, its text in Redis, and the two transitions of core/state.py.
--
-- A state is { siblings = { winner, … }, beyond = { origin -> timestamp } or nil, revision = n }.
-- A sibling is { at = timestamp, origin = text, insert = bool, condition = text or nil,
-- expires_at = text of digits or nil }. `revision` is where the visible part last changed here.
--
-- Text, short form, for one sibling without payload:  ±AT ORIGIN  or  ±AT ORIGIN DELTA
-- where DELTA is revision - AT, left out when 0. Long form: the sign and a JSON object:
--   ±{"siblings":[[at, origin, sign, condition, expires_at], …], "beyond": …, "revision": …}
-- The winner comes first; the leading sign is the winner's, `+` is visible.
--
-- @include number
-- @include version
local state = {}
do
  function state.decode(value)
    local sign, at, origin, delta = string.match(value, '^([+-])(%d+) (%S+) ?(%d*)$')
    if sign then
      local timestamp = tonumber(at)
      return {
        siblings = { { at = timestamp, origin = origin, insert = sign == '+' } },
        revision = delta == '' and timestamp or timestamp + tonumber(delta),
      }
    end
    local long = cjson.decode(string.sub(value, 2))
    local decoded = { siblings = {}, revision = tonumber(long.revision) }
    for index, fields in ipairs(long.siblings) do
      decoded.siblings[index] = {
        at = tonumber(fields[1]),
        origin = fields[2],
        insert = fields[3] == '+',
        condition = fields[4] ~= '' and fields[4] or nil,
        expires_at = fields[5] ~= '' and fields[5] or nil,
      }
    end
    if long.beyond then
      decoded.beyond = {}
      for origin_beyond, text in pairs(long.beyond) do
        decoded.beyond[origin_beyond] = tonumber(text)
      end
    end
    return decoded
  end

  -- A sibling as it is written in the long form: five texts.
  function state.fields(sibling)
    return {
      number.text(sibling.at), sibling.origin, sibling.insert and '+' or '-',
      sibling.condition or '', sibling.expires_at or '',
    }
  end

  function state.encode(new)
    local best = new.siblings[1]
    local sign = best.insert and '+' or '-'
    if not new.siblings[2] and not new.beyond and not best.condition and not best.expires_at then
      local short = sign .. number.text(best.at) .. ' ' .. best.origin
      if new.revision == best.at then return short end
      return short .. ' ' .. number.text(new.revision - best.at)
    end
    local long = { siblings = {}, revision = number.text(new.revision) }
    for index, sibling in ipairs(new.siblings) do
      long.siblings[index] = state.fields(sibling)
    end
    if new.beyond then
      long.beyond = {}
      for origin, timestamp in pairs(new.beyond) do
        long.beyond[origin] = number.text(timestamp)
      end
    end
    return sign .. cjson.encode(long)
  end

  -- One live sibling: nothing for collection to do.
  function state.is_settled(of)
    return of.siblings[1].insert and not of.siblings[2] and not of.beyond
  end

  -- The entries of `a` and `b` (nil: none), greatest each, that `vector` has not reached.
  function state.above(a, b, vector)
    local left = nil
    for _, entries in pairs({ a or false, b or false }) do
      if entries then
        for origin, timestamp in pairs(entries) do
          if timestamp > (vector[origin] or 0) then
            left = left or {}
            if timestamp > (left[origin] or 0) then left[origin] = timestamp end
          end
        end
      end
    end
    return left
  end

  -- A local write. `old` is nil for a tuple not seen before; `vector` is this node's.
  function state.write(old, sibling, vector)
    return {
      siblings = { sibling },
      beyond = old and old.beyond and state.above(old.beyond, nil, vector) or nil,
      revision = sibling.at,
    }
  end

  local function same(a, b)
    return a.insert == b.insert and a.condition == b.condition and a.expires_at == b.expires_at
  end

  -- The winner comes first. rules: the ranking for this tuple. Returns nil and a reason where a
  -- custom script fails.
  local function ranked(siblings, rules)
    local best, reason = 1, nil
    if rules.choose and siblings[2] then
      best, reason = rules.choose(siblings)
      if not best then return nil, reason end
    end
    for index = 2, rules.wins and #siblings or 0 do
      if rules.wins(siblings[index], siblings[best]) then best = index end
    end
    siblings[1], siblings[best] = siblings[best], siblings[1]
    return rules.keeps_losers and siblings or { siblings[1] }
  end

  -- One change of another origin that this node has not received before.
  -- context: what it had overwritten, beside its own origin up to `previous`; extra: the same,
  -- for this tuple alone, or nil. reached: this node's vector once the transaction is applied;
  -- unreached: the part of context above it, or nil.
  -- Returns the new state (nil: the contexts contradict each other, or with a reason as the third
  -- value: no winner could be chosen), and its conflicts: the list of the stored siblings that it
  -- stands beside and that differ, or nil when there is none.
  function state.absorb(old, sibling, previous, context, extra, reached, unreached, rules, revision)
    if not old then
      local beyond = nil
      if unreached or extra then beyond = state.above(unreached, extra, reached) end
      return { siblings = { sibling }, beyond = beyond, revision = revision }
    end
    local siblings, beside = {}, nil
    local arrives = not (old.beyond and sibling.at <= (old.beyond[sibling.origin] or 0))
    for _, stored in ipairs(old.siblings) do
      local at, origin = stored.at, stored.origin
      local covered = at <= (context[origin] or 0)
        or (origin == sibling.origin and at <= previous)
        or (extra and at <= (extra[origin] or 0))
      -- The same version again: a merge that an error of the server cut short.
      local again = at == sibling.at and origin == sibling.origin
      if not covered and not again then
        siblings[#siblings + 1] = stored
        if arrives and not same(stored, sibling) then
          beside = beside or {}
          beside[#beside + 1] = stored
        end
      end
    end
    if arrives then siblings[#siblings + 1] = sibling end
    if not siblings[1] then return nil end
    local reason
    siblings, reason = ranked(siblings, rules)
    if not siblings then return nil, nil, reason end
    local beyond = nil
    if old.beyond or unreached or extra then
      beyond = state.above(state.above(old.beyond, unreached, reached), extra, reached)
    end
    local kept = siblings[1] == old.siblings[1]
    return {
      siblings = siblings,
      beyond = beyond,
      revision = kept and old.revision or revision,
    }, beside
  end

  local function is_covered(sibling, contexts)
    for _, context in ipairs(contexts) do
      if sibling.at <= (context[sibling.origin] or 0) then return true end
    end
    return false
  end

  local function find(siblings, wanted)
    for _, sibling in ipairs(siblings) do
      if sibling.at == wanted.at and sibling.origin == wanted.origin then return sibling end
    end
    return nil
  end

  -- Two states of one tuple, either may be nil; the join of core/state.py. Contexts are lists of
  -- vectors. reached: a list of vectors, what leaves `beyond`. Returns the new state (nil: nothing
  -- is left), and the pairs {stored, arrived} of siblings that stand beside each other and differ;
  -- the third value is why no winner could be chosen.
  function state.join(mine, theirs, my_contexts, their_contexts, reached, rules, revision)
    local stored, arriving = mine and mine.siblings or {}, theirs and theirs.siblings or {}
    local siblings, conflicts = {}, {}
    for _, sibling in ipairs(stored) do
      if find(arriving, sibling) or not is_covered(sibling, their_contexts) then
        siblings[#siblings + 1] = sibling
      end
    end
    local new = {}
    for _, sibling in ipairs(arriving) do
      if not find(stored, sibling) and not is_covered(sibling, my_contexts) then
        new[#new + 1] = sibling
      end
    end
    table.sort(new, function(a, b) return version.newer(b.at, b.origin, a.at, a.origin) end)
    for _, sibling in ipairs(new) do
      for _, beside in ipairs(siblings) do
        if not same(beside, sibling) then conflicts[#conflicts + 1] = { beside, sibling } end
      end
      siblings[#siblings + 1] = sibling
    end
    if not siblings[1] then return nil, conflicts end
    local reason
    siblings, reason = ranked(siblings, rules)
    if not siblings then return nil, {}, reason end
    local beyond = state.above(mine and mine.beyond, theirs and theirs.beyond, {})
    for _, vector in ipairs(reached) do
      if beyond then beyond = state.above(beyond, nil, vector) end
    end
    return {
      siblings = siblings,
      beyond = beyond,
      revision = mine and siblings[1] == mine.siblings[1] and mine.revision or revision,
    }, conflicts
  end

  -- Repair: theirs is the truth about all that it has seen. A version of ours that they have not
  -- seen is kept, and the two are joined, until they have it; one that not even this node has
  -- received was written behind our back, and goes. The contexts of this node come without what the
  -- tuple itself has overwritten.
  function state.replace(mine, theirs, my_contexts, their_contexts, reached, rules, revision)
    local held, is_ahead = {}, false
    for _, sibling in ipairs(mine and mine.siblings or {}) do
      local is_theirs = is_covered(sibling, their_contexts)
      if is_theirs or is_covered(sibling, my_contexts) then held[#held + 1] = sibling end
      is_ahead = is_ahead or (held[#held] == sibling and not is_theirs)
    end
    local beyond = mine and mine.beyond
    local left = { siblings = held, beyond = beyond, revision = mine and mine.revision }
    if is_ahead then
      local seen = { beyond }
      for _, context in ipairs(my_contexts) do seen[#seen + 1] = context end
      return state.join(left, theirs, seen, their_contexts, reached, rules, revision)
    end
    left.siblings = {}
    local new, _, reason = state.join(left, theirs, {}, their_contexts, reached, rules, revision)
    local before, after = mine and mine.siblings[1], new and new.siblings[1]
    if before and after and same(before, after) and before.at == after.at
      and before.origin == after.origin
    then
      new.revision = mine.revision
    end
    return new, {}, reason
  end

  -- A stored state under other rules: the winner may be another one. Returns nil and a reason where
  -- none can be chosen.
  function state.rerank(old, rules, revision)
    local siblings, reason = ranked({ unpack(old.siblings) }, rules)
    if not siblings then return nil, reason end
    return {
      siblings = siblings,
      beyond = old.beyond,
      revision = siblings[1] == old.siblings[1] and old.revision or revision,
    }
  end

  -- What is left once every node has what is in `stable`; nil when the tuple goes.
  -- of.beyond has only what this node's vector has not reached.
  function state.collect(of, stable)
    if of.beyond then return of end
    for _, sibling in ipairs(of.siblings) do
      if sibling.at > (stable[sibling.origin] or 0) then return of end
    end
    if not of.siblings[1].insert then return nil end
    return { siblings = { of.siblings[1] }, revision = of.revision }
  end
end
