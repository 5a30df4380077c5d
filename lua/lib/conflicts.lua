-- conflicts: the log of conflicts, one entry for each that is counted, and one for each change that
-- a promotion found unshipped.
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

  -- revision: must not be below that of any entry written before.
  local function next_id(revision)
    count = revision == last and count + 1 or 0
    last = revision
    return number.text(revision) .. '-' .. count
  end

  -- One conflict of one tuple: `arrived` came to stand beside `stored`, which differs.
  -- revision: where the arriving transaction (or page) is in this node's feed; the ids of entries
  -- begin with it, so it must not be below that of any entry written before.
  -- winner: the sibling that readers see from now on; it may be a third one.
  -- rules: the ranking of this tuple. change: as in `tuples`.
  function conflicts.add(revision, now_us, tenant, change, stored, arrived, winner, rules)
    local who = winner == arrived and 'arrived' or winner == stored and 'stored' or text(winner)
    redis.call('XADD', keys.conflicts, 'MAXLEN', '~', most, next_id(revision),
      'merged_us', number.text(now_us), 'tenant', tenant, 'resource', change.resource,
      'relation', change.relation, 'subject', change.subject, 'strategy', rules.name,
      'resolved', winner == arrived and 'remote' or 'local', 'winner', who,
      'stored', text(stored), 'arrived', text(arrived))
  end

  -- A change that a region made which was no primary any more, by the epoch of another one.
  -- revision: as above; the transaction itself is in the feed at its timestamp.
  function conflicts.add_fenced(revision, now_us, tx, change, epoch)
    redis.call('XADD', keys.conflicts, 'MAXLEN', '~', most, next_id(revision),
      'kind', 'fenced', 'listed_us', number.text(now_us), 'tenant', tx.tenant,
      'resource', change.resource, 'relation', change.relation, 'subject', change.subject,
      'epoch', number.text(epoch.number), 'primary', epoch.region,
      'written', text({
        at = tx.timestamp, origin = tx.origin, insert = change.insert,
        condition = change.condition, expires_at = change.expires_at,
      }))
  end
end
