-- phase: the end of what keeps an incarnation from being trusted, or from writing.
--
-- KEYS 1 meta     hash
-- ARGV 1 known    highest timestamp this process knows to be stored
-- ARGV 2 ended    "exposed": a peer has nothing that this node once had and lacks; "behind": this
--                 node has caught up, or its operator accepts the loss; "joined": a change of the
--                 rules is complete
-- REPLY  outcome  "done" | "lost"
-- FLAGS  allow-oom
--
-- @include keys
-- @include node
if not node.read(ARGV[1]) then return { 'lost' } end
redis.call('HDEL', keys.meta, ARGV[2])
if ARGV[2] == 'exposed' then redis.call('UNLINK', keys.undo) end
return { 'done' }
