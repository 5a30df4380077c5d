-- digest: a number of 40 bits for one visible tuple, and its sum over a bucket.
-- The sum is kept by HINCRBY and never reduced here; whoever compares takes it modulo 2^40.
-- @include keys
-- @include number
local digest = {}
do
  local prime = 67108859 -- the greatest below 2^26, so that every product stays below 2^52
  local half = 1048576 -- 2^20
  local origins = {}

  -- Mixing is squaring modulo a prime: not linear, so that two tuples that swap a timestamp, an
  -- origin or a hash change the sum.
  local function stir(h, limb)
    h = (h + limb) % prime
    return (h * h + h * 31 + 7) % prime
  end

  local function origin_hash(origin)
    local h = origins[origin]
    if not h then
      h = 5381
      for i = 1, #origin do h = (h * 33 + string.byte(origin, i)) % prime end
      origins[origin] = h
    end
    return h
  end

  function digest.mix(hash, at, origin)
    local upper = math.floor(hash / half)
    local lower = hash - upper * half
    local late = math.floor(at / 67108864)
    local soon = at - late * 67108864
    local h = stir(stir(stir(stir(stir(1, upper), lower), late), soon), origin_hash(origin))
    local g = stir(stir(stir(h + 65537, soon), lower), upper)
    return (h % half) * half + g % half
  end

  -- The sum of numbers of a bucket, whatever it was.
  function digest.set(bucket, sum)
    redis.call('HSET', keys.digest, bucket, number.text(sum))
  end

  function digest.add(bucket, amount)
    if amount ~= 0 then
      redis.call('HINCRBY', keys.digest, bucket, number.text(amount))
    end
  end
end
