-- keys: the names of the keys of one partition; nowhere else in Lua are they spelled.
-- KEYS[1] is always the partition's `meta`; every other key shares its hash tag.
local keys = {}
do
  local base = string.sub(KEYS[1], 1, -5)
  keys.meta = KEYS[1]
  keys.feed = base .. 'feed'
  keys.vector = base .. 'vector'
  keys.floor = base .. 'floor'
  keys.cursors = base .. 'cursors'
  keys.digest = base .. 'digest'
  keys.unsettled = base .. 'unsettled'
  keys.conflicts = base .. 'conflicts'
  keys.tenants = base .. 'tenants'
  keys.beyond = base .. 'beyond'
  keys.floor = base .. 'floor'
  keys.undo = base .. 'undo'
  keys.aside = base .. 'aside'
  keys.parked = base .. 'parked'
  keys.removed = base .. 'removed'
  keys.dirty = base .. 'dirty'
  keys.held = base .. 'held'
  keys.intents = base .. 'intents'
  keys.intended = base .. 'intended'
  keys.again = base .. 'again'
  keys.telling = base .. 'telling'
  keys.beside = base .. 'beside'

  function keys.tuples(tenant, resource) return base .. 't:' .. tenant .. '/' .. resource end
  function keys.subject(tenant, subject) return base .. 's:' .. tenant .. '/' .. subject end
  function keys.type(tenant, type) return base .. 'x:' .. tenant .. '/' .. type end
  function keys.types(tenant) return base .. 'x:' .. tenant end
  function keys.known(node) return base .. 'known:' .. node end
  function keys.bucket(bucket) return base .. 'b:' .. bucket end
  function keys.idempotency(name) return base .. 'i:' .. name end
  -- What `b:` sets hold: the name of a `t:` key without the base.
  function keys.stored(member) return base .. 't:' .. member end
  function keys.member(tenant, resource) return tenant .. '/' .. resource end
end
