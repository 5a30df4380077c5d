-- conflicts: the log of conflicts, one entry for each that is counted.
-- An entry is written together with the state it tells of, and after everything was validated: it
-- can neither be refused alone nor be there without its state.
-- @include keys
-- @include number
-- @include state
local conflicts = {}
do
  -- At the limit the oldest go, a node of the stream at a time, so a few more may be left.
  local most = 10000
  local last, count = 0, 0

  local function text(sibling) return cjson.encode(state.fields(sibling)) end

  -- One conflict of one tuple: `arrived` came to stand beside `stored`, which differs.
  -- revision: where the arriving transaction (or page) is in this node's feed; the ids of entries
  -- begin with it, so it must not be below that of any entry written before.
  -- winner: the sibling that readers see from now on; it may be a third one.
  -- rules: the ranking of this tuple. change: as in `tuples`.
  function conflicts.add(revision, now_us, tenant, change, stored, arrived, winner, rules)
    count = revision == last and count + 1 or 0
    last = revision
    local who = winner == arrived and 'arrived' or winner == stored and 'stored' or text(winner)
    redis.call('XADD', keys.conflicts, 'MAXLEN', '~', most,
      number.text(revision) .. '-' .. count,
      'merged_us', number.text(now_us), 'tenant', tenant, 'resource', change.resource,
      'relation', change.relation, 'subject', change.subject, 'strategy', rules.name,
      'resolved', winner == arrived and 'remote' or 'local', 'winner', who,
      'stored', text(stored), 'arrived', text(arrived))
  end
end
