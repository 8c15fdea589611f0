// How kernels of several ranks meet, each on its GPU or all on one (crates/cuda/src/ranks/peers.rs).
//
// Each rank has a region that all ranks read and write: flags, then two slots that calls use in turn. A call has a number, its
// epoch, which the kernel counts itself, so that a graph that is replayed goes on counting. A block leaves what others are to read
// in its rank's slot, tells the same block of every other rank its epoch, and waits for theirs. Who is told an epoch knows
// that its teller has ended the one before; so nobody reads a slot any more when it is written anew, two epochs later.
//
// All ranks launch the same kernels with the same grids in the same order. Every wait ends: after the group's deadline, when the
// host or another rank has given up, or when the rank that is waited for has ended before this call.
#ifndef RANKS_CUH
#define RANKS_CUH

namespace ranks {

constexpr u32 MOST_RANKS = 16, MOST_BLOCKS = 64, PHASES = 2;
// Of messages between two ranks: lanes, and words for which one is enough.
constexpr u32 MOST_LANES = 8, LANE_WORDS = 4096;
// Looks at the flag between looks at whether there is still a reason to.
constexpr u32 LOOKS = 64;
enum State { SOUND, LATE, STOPPED, OTHER_SIZE };
// The number of this operation (crates/cuda/src/ranks/peers.rs).
constexpr u32 SEND = 4;
constexpr u32 NOBODY = ~0u;

// What a rank has in memory that others write.
struct Region {
  u32 flags[PHASES][MOST_RANKS][MOST_BLOCKS];
  // Why no call waits any more, of which operation and epoch, and the ranks that were missing, a bit each.
  u32 state, op, at, missing;
  // Calls so far, and blocks that are done with the one at hand. Its own rank's alone.
  u32 epoch, done;
};

// What the host and a rank's kernels tell each other. It lies in the host's memory.
struct Words {
  // Set by the host: nobody waits any more.
  u32 stop;
  // As in Region.
  u32 state, op, at, missing;
  // How many calls a rank made before it ended, plus 1.
  u32 ended[MOST_RANKS];
  // How many messages it gave this rank, and took of this rank, before it ended, plus 1.
  u32 gave[MOST_RANKS], took[MOST_RANKS];
  // Words of a message, and how many were expected: two numbers of 64 bits, low halves first.
  u32 sizes[4];
};

// How far messages are, on each lane; the numbers go round. It lies in the region, from peers.rings on.
struct Rings {
  // What a rank has left here, and what it has taken of what this one left there. Others write them.
  u32 arrived[MOST_RANKS][MOST_LANES], taken[MOST_RANKS][MOST_LANES];
  // What this one has left for a rank, and taken of it; messages to it, and of it.
  u32 left[MOST_RANKS][MOST_LANES], got[MOST_RANKS][MOST_LANES], sent[MOST_RANKS], received[MOST_RANKS];
  // Exchanges of all ranks, and blocks that are done with the kernel at hand.
  u32 exchanges, done;
};

struct Peers {
  u32 rank, ranks;
  u64 timeout_ns, slot_bytes, first_slot;
  Words *words;
  // Where Rings and the rings themselves lie in a region; lanes, and words of a ring, a power of two.
  u64 rings, first_ring;
  u32 lanes, ring_words;
  Region *regions[MOST_RANKS];
};

DEVICE float *slot(const Peers *peers, u32 rank, u32 epoch) {
  u8 *region = reinterpret_cast<u8 *>(peers->regions[rank]);
  return reinterpret_cast<float *>(region + peers->first_slot + (epoch & 1) * peers->slot_bytes);
}

DEVICE Rings *rings_of(const Peers *peers, u32 rank) {
  return reinterpret_cast<Rings *>(reinterpret_cast<u8 *>(peers->regions[rank]) + peers->rings);
}

// A call of this rank, as all threads of a block know it.
struct Call {
  const Peers *peers;
  u32 op, epoch;
};

DEVICE void report(const Call &call);

// Begins a call. False if nobody waits any more, which the host then knows.
DEVICE bool begin(Call &call) {
  SHARED u32 epoch, state;
  const Region *own = call.peers->regions[call.peers->rank];
  if (thread() == 0) {
    epoch = own->epoch + 1, state = load_acquire(&own->state);
    if (state != SOUND) report(call);
  }
  sync_block();
  call.epoch = epoch;
  return state == SOUND;
}

// Ends a call: the last block counts it.
DEVICE void end(const Call &call) {
  sync_block();
  if (thread() != 0) return;
  Region *own = call.peers->regions[call.peers->rank];
  fence();
  if (atomic_add(&own->done, 1) + 1 < blocks_x()) return;
  own->done = 0;
  own->epoch = call.epoch;
}

// Waits until another rank's flag has come to the epoch. It says this epoch then, or the next one, in which its rank waits for this
// one; else it is of an earlier call (but for one that was not written since two rounds of numbers ended). Some flags are not written for billions of calls (those of a second phase, those of
// blocks that small calls don't have), so that nothing follows from which number is larger: epochs go round.
DEVICE State wait_for(const Call &call, u32 rank, const u32 *flag) {
  const Peers *peers = call.peers;
  const Region *own = peers->regions[peers->rank];
  const Words *words = peers->words;
  u64 since = 0;
  for (u32 looks = 1;; looks++) {
    if (load_acquire(flag) - call.epoch <= 1) return SOUND;
    if (looks % LOOKS == 0) {
      if (load_acquire(&own->state) != SOUND || load_acquire(&words->stop)) return STOPPED;
      u32 ended = load_acquire(&words->ended[rank]);
      // What it did before it ended may still be under way.
      if (ended && int(call.epoch - ended) >= 0) return STOPPED;
      u64 now = clock_ns();
      if (since == 0) since = now;
      if (now - since > peers->timeout_ns) return LATE;
    }
    relax();
  }
}

// One thread, when its block gives up: says so to the host, and to all ranks, who then need not wait as long again.
DEVICE void give_up(const Call &call, State state, u32 missing) {
  const Peers *peers = call.peers;
  for (u32 i = 0; i < peers->ranks; i++) {
    Region *region = peers->regions[(peers->rank + i) % peers->ranks];
    if (load_acquire(&region->state) != SOUND) continue;
    region->op = call.op, region->at = call.epoch, region->missing = missing;
    store_release(&region->state, state);
  }
}

// One thread: what this rank was told or found out, to the host.
DEVICE void report(const Call &call) {
  const Region *own = call.peers->regions[call.peers->rank];
  Words *words = call.peers->words;
  u32 state = load_acquire(&own->state);
  words->op = own->op, words->at = own->at, words->missing = own->missing;
  store_release(&words->state, state);
}

// The same block of all ranks meets; what any of its threads wrote before is there for all. False if one does not come: then
// there is nothing to go on with.
DEVICE bool meet(const Call &call, u32 phase) {
  SHARED u32 late, stopped;
  const Peers *peers = call.peers;
  if (thread() == 0) late = stopped = 0;
  sync_block();
  u32 other = thread();
  if (other < peers->ranks && other != peers->rank) {
    store_release(&peers->regions[other]->flags[phase][peers->rank][block_x()], call.epoch);
    State state = wait_for(call, other, &peers->regions[peers->rank]->flags[phase][other][block_x()]);
    if (state == LATE) atomic_add(&late, 1u << other);
    if (state == STOPPED) atomic_add(&stopped, 1u << other);
  }
  sync_block();
  bool all_came = late == 0 && stopped == 0;
  if (!all_came && thread() == 0) {
    give_up(call, late ? LATE : STOPPED, late ? late : stopped);
    report(call);
  }
  // Nobody begins the next meeting before all have read what came of this one.
  sync_block();
  return all_came;
}

} // namespace ranks
#endif
