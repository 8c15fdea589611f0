// Words from rank to rank: what stages hand on, and rows that go to their experts.
//
// Limited by latency where it is little: a write to the other GPU, and its look at a flag, 2 to 3 microseconds over NVLink. Large ones
// are limited by the link: blocks write and read sixteen bytes at a time, and a ring that is a quarter full is read while the rest
// is written; 80 % of what a copy over the link reaches.
//
// A rank's region has a ring for each other rank and lane, in which that one leaves words for it. Both count them, and tell each other by
// flags: how many were left, how many were taken. Each message of a pair is dealt out to lanes, the same on both sides; its first
// lane begins with how many words there are. Whatever a rank sends to several and takes of several at a time goes on wherever something
// can be left or taken, so that no order of ranks or blocks holds another up.

namespace moves {
using namespace ranks;

// What goes to another rank, and what comes of it, in words. NONE where there is no message.
struct Leg {
  const u32 *from;
  u32 *to;
  u64 sent, received;
};
constexpr u64 NONE = ~0ull;
// Words before those of a message.
constexpr u32 HEADER = 4;
// Looks in vain between looks at whether there is still a reason to.
constexpr u32 LOOKS_IN_VAIN = 16;

// A lane's part of a message: `words` from `first` on, behind a header if it has one. Of `length` of both together, rounded up to
// fours, `done` are behind it; `now` is what is to be done at once.
struct Part {
  u64 all, first, words, length, done;
  u32 now, at;
};

DEVICE u32 lanes_of(const Peers *peers, u64 words) {
  u64 lanes = (words + LANE_WORDS - 1) / LANE_WORDS;
  return lanes < 1 ? 1 : lanes < peers->lanes ? u32(lanes) : peers->lanes;
}

DEVICE Part part_of(const Peers *peers, u32 lane, u64 words, u32 counted) {
  Part part{words, 0, 0, 0, 0, 0, counted};
  if (words == NONE) return part;
  u32 lanes = lanes_of(peers, words);
  if (lane >= lanes) return part;
  u64 each = ((words + lanes - 1) / lanes + 3) / 4 * 4;
  part.first = lane * each < words ? lane * each : words;
  part.words = words - part.first < each ? words - part.first : each;
  part.length = (part.words + 3) / 4 * 4 + (lane == 0 ? HEADER : 0);
  return part;
}

// Where a rank's words for another one lie.
DEVICE u32 *ring(const Peers *peers, u32 of, u32 from, u32 lane) {
  u8 *region = reinterpret_cast<u8 *>(peers->regions[of]) + peers->first_ring;
  return reinterpret_cast<u32 *>(region) + u64(from * peers->lanes + lane) * peers->ring_words;
}

DEVICE bool is_vector(const void *at) { return (reinterpret_cast<u64>(at) & 15) == 0; }

// Four words of a part, from its word `i` on, as they travel.
DEVICE Vec4 take_four(const Part &part, const u32 *from, u64 i, bool has_header) {
  if (has_header && i == 0) return Vec4{u32(part.all), u32(part.all >> 32), 0, 0};
  u64 at = has_header ? i - HEADER : i;
  from += part.first + at;
  u64 left = part.words - at;
  if (left >= 4 && is_vector(from)) return *reinterpret_cast<const Vec4 *>(from);
  return Vec4{from[0], left > 1 ? from[1] : 0, left > 2 ? from[2] : 0, left > 3 ? from[3] : 0};
}

DEVICE void put_four(const Part &part, u32 *to, u64 i, bool has_header, const Vec4 &four) {
  u64 at = has_header ? i - HEADER : i;
  to += part.first + at;
  u64 left = part.words - at;
  if (left >= 4 && is_vector(to)) {
    *reinterpret_cast<Vec4 *>(to) = four;
    return;
  }
  to[0] = four.x;
  if (left > 1) to[1] = four.y;
  if (left > 2) to[2] = four.z;
  if (left > 3) to[3] = four.w;
}

// One thread: a message of another size than this rank expects. Nobody goes on.
DEVICE void refuse(const Call &call, u32 from, u64 sent, u64 expected) {
  const Peers *peers = call.peers;
  Words *words = peers->words;
  words->sizes[0] = u32(sent), words->sizes[1] = u32(sent >> 32);
  words->sizes[2] = u32(expected), words->sizes[3] = u32(expected >> 32);
  Region *own = peers->regions[peers->rank];
  own->op = call.op, own->at = call.epoch, own->missing = 1u << from;
  store_release(&own->state, OTHER_SIZE);
  give_up(call, STOPPED, 1u << peers->rank);
  report(call);
}

} // namespace moves

// This rank's messages to others and of others: a leg for each rank. In errors they are a message's number, of those to or of the
// rank `numbered`; or that of an exchange, if there is no such rank. Who is waited for longer than `timeout_ns` is missing.
KERNEL_OF(512, move_words)
(const ranks::Peers *peers, u32 op, const moves::Leg *legs, u32 numbered, u64 timeout_ns) {
  using namespace moves;
  SHARED Part sends[MOST_RANKS], receives[MOST_RANKS];
  SHARED u32 state, busy, left, late, stopped, refused;
  SHARED u32 refused_words[2];
  u32 rank = peers->rank, other = thread(), lane = block_x();
  Region *own = peers->regions[rank];
  Rings *rings = rings_of(peers, rank);
  // Before the last block of this kernel counts them, all have read them.
  u32 number = numbered >= peers->ranks ? rings->exchanges + 1
               : op == SEND             ? rings->sent[numbered] + 1
                                        : rings->received[numbered] + 1;
  Call call{peers, op, number};
  if (thread() == 0) {
    state = load_acquire(&own->state);
    if (state != SOUND) report(call);
    late = stopped = 0, refused = NOBODY;
  }
  bool is_peer = other < peers->ranks && other != rank;
  u32 to_number = 0, from_number = 0;
  if (is_peer) {
    sends[other] = part_of(peers, lane, legs[other].sent, rings->left[other][lane]);
    receives[other] = part_of(peers, lane, legs[other].received, rings->got[other][lane]);
    to_number = rings->sent[other] + 1, from_number = rings->received[other] + 1;
  }
  sync_block();
  if (state != SOUND) return;

  const u32 mask = peers->ring_words - 1, most = peers->ring_words / 4;
  u64 since = 0;
  for (u32 in_vain = 1;;) {
    if (thread() == 0) busy = left = 0;
    sync_block();
    if (is_peer) {
      Part &send = sends[other], &receive = receives[other];
      u64 to_send = send.length - send.done, to_receive = receive.length - receive.done;
      send.now = receive.now = 0;
      if (to_send > 0) {
        u32 room = peers->ring_words - (send.at - load_acquire(&rings->taken[other][lane]));
        u64 now = to_send < most ? to_send : most;
        send.now = now < room ? u32(now) : room;
      }
      if (to_receive > 0) {
        u32 there = load_acquire(&rings->arrived[other][lane]) - receive.at;
        u64 now = to_receive < most ? to_receive : most;
        receive.now = now < there ? u32(now) : there;
      }
      bool is_busy = send.now + receive.now > 0;
      if (is_busy) atomic_add(&busy, 1), since = 0;
      if (to_send + to_receive > 0) {
        atomic_add(&left, 1);
        if (!is_busy && in_vain % LOOKS_IN_VAIN == 0) {
          const Words *words = peers->words;
          u32 took = load_acquire(&words->took[other]), gave = load_acquire(&words->gave[other]);
          // What it did before it ended may still be under way.
          bool no_taker = to_send > 0 && took && int(to_number - took) >= 0;
          bool no_giver = to_receive > 0 && gave && int(from_number - gave) >= 0;
          u64 now = clock_ns();
          if (since == 0) since = now;
          if (load_acquire(&own->state) != SOUND || load_acquire(&words->stop) || no_taker || no_giver)
            atomic_add(&stopped, 1u << other);
          else if (now - since > timeout_ns) atomic_add(&late, 1u << other);
        }
      }
    }
    sync_block();
    if (left == 0) break;
    if (late || stopped) {
      if (thread() == 0) {
        give_up(call, late ? LATE : STOPPED, late ? late : stopped);
        report(call);
      }
      return;
    }
    if (busy == 0) {
      in_vain++;
      relax();
      // Nobody begins anew before all have read what came of this look.
      sync_block();
      continue;
    }
    bool has_header = lane == 0;
    for (u32 peer = 0; peer < peers->ranks; peer++) {
      if (peer == rank) continue;
      const Part &send = sends[peer], &receive = receives[peer];
      u32 *there = ring(peers, peer, rank, lane);
      for (u32 i = 4 * thread(); i < send.now; i += 4 * threads())
        *reinterpret_cast<Vec4 *>(there + ((send.at + i) & mask)) =
            take_four(send, legs[peer].from, send.done + i, has_header);
      const u32 *here = ring(peers, rank, peer, lane);
      for (u32 i = 4 * thread(); i < receive.now; i += 4 * threads()) {
        Vec4 four = *reinterpret_cast<const Vec4 *>(here + ((receive.at + i) & mask));
        if (!has_header || receive.done + i > 0) {
          put_four(receive, legs[peer].to, receive.done + i, has_header, four);
        } else if ((u64(four.y) << 32 | four.x) != receive.all) {
          refused = peer, refused_words[0] = four.x, refused_words[1] = four.y;
        }
      }
    }
    sync_block();
    if (refused != NOBODY) {
      if (thread() == 0) {
        u64 sent = u64(refused_words[1]) << 32 | refused_words[0];
        refuse(call, refused, sent, receives[refused].all);
      }
      return;
    }
    if (is_peer) {
      Part &send = sends[other], &receive = receives[other];
      if (send.now > 0) {
        send.at += send.now, send.done += send.now;
        store_release(&rings_of(peers, other)->arrived[rank][lane], send.at);
      }
      if (receive.now > 0) {
        receive.at += receive.now, receive.done += receive.now;
        store_release(&rings_of(peers, other)->taken[rank][lane], receive.at);
      }
    }
  }

  if (is_peer) rings->left[other][lane] = sends[other].at, rings->got[other][lane] = receives[other].at;
  // The last block counts the messages.
  if (thread() == 0) {
    fence();
    late = atomic_add(&rings->done, 1) + 1 == blocks_x();
  }
  sync_block();
  if (!late) return;
  if (is_peer) {
    if (legs[other].sent != NONE) rings->sent[other] = to_number;
    if (legs[other].received != NONE) rings->received[other] = from_number;
  }
  if (thread() == 0) {
    rings->done = 0;
    if (numbered >= peers->ranks) rings->exchanges = number;
  }
}
EXPORT(move_words)
