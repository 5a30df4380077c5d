-- known: store the rows that are believed: the vectors that other nodes are known to have.
--
-- KEYS 1 meta     hash
-- ARGV 1 known    highest timestamp this process knows to be stored
-- ARGV 2… pairs   node, its row as JSON
-- REPLY  outcome  "known" | "lost"
-- FLAGS  allow-oom
--
-- @include keys
-- @include node
if not node.read(ARGV[1]) then return { 'lost' } end
for i = 2, #ARGV, 2 do
  redis.call('DEL', keys.known(ARGV[i]))
  for origin, timestamp in pairs(node.vector_of(ARGV[i + 1])) do
    redis.call('HSET', keys.known(ARGV[i]), origin, number.text(timestamp))
  end
end
return { 'known' }
