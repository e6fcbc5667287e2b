// Latencies in constant memory. The width of a bucket is 1/256 of its value, so a quantile is accurate to 0.4 %.

#include <stdint.h>

#define FINE_BITS 8
#define FINE (1u << FINE_BITS)

struct latency {
  uint64_t count, largest;
  uint64_t buckets[(64 - FINE_BITS + 1) * FINE];
};

static void latency_add(struct latency *all, uint64_t value) {
  unsigned bucket = (unsigned)value;
  if (value >= FINE) {
    unsigned shift = 63u - FINE_BITS - (unsigned)__builtin_clzll(value);
    bucket = shift * FINE + (unsigned)(value >> shift);
  }
  all->buckets[bucket]++;
  all->count++;
  if (value > all->largest)
    all->largest = value;
}

// Returns a quantile: the given `share` of all values is not larger than the result.
static uint64_t latency_quantile(const struct latency *all, double share) {
  uint64_t wanted = (uint64_t)((double)all->count * share), seen = 0;
  for (unsigned bucket = 0; bucket < sizeof all->buckets / sizeof *all->buckets; bucket++) {
    seen += all->buckets[bucket];
    if (seen > wanted) {
      unsigned shift = bucket < 2 * FINE ? 0 : bucket / FINE - 1;
      return (uint64_t)(bucket - shift * FINE) << shift;
    }
  }
  return all->largest;
}
