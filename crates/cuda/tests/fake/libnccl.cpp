// NVIDIA's library of collectives where there is none. Ranks are threads or processes; what they exchange goes through a file that
// all of them map, a pipe for each ordered pair. As in the real one nothing that is asked is done when a call returns: whoever does not
// ask whether it has progressed finds it missing.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <functional>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

typedef uint32_t u32;
typedef uint64_t u64;
typedef uint8_t u8;

namespace fake {

enum { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
constexpr u64 CAPACITY = 64 << 10;
constexpr u32 RANKS = 16;
// How often one has to ask until something has progressed.
constexpr int ASKED = 3;

struct Pipe {
  std::atomic<u64> written, read;
  u8 bytes[CAPACITY];

  // As many of these bytes as there is room for, or as there are.
  u64 put(const u8 *from, u64 most) {
    u64 at = written, count = std::min(most, CAPACITY - (at - read));
    for (u64 i = 0; i < count; i++) bytes[(at + i) % CAPACITY] = from[i];
    return written = at + count, count;
  }
  u64 take(u8 *to, u64 most) {
    u64 at = read, count = std::min(most, written - at);
    for (u64 i = 0; i < count; i++) to[i] = bytes[(at + i) % CAPACITY];
    return read = at + count, count;
  }
};
struct Shared {
  std::atomic<u32> joined, gpu_of_rank[RANKS];
  Pipe pipes[];
};

struct Comm {
  u32 rank, ranks;
  Shared *shared;
  std::string path;
  int asked = 0;
  std::function<void()> then;
  bool is_joined = false, is_finalized = false;
  std::atomic<u32> runs{0};
  std::atomic<int> error{SUCCESS};
  std::atomic<bool> is_aborted{false};
  std::string text;

  Pipe &pipe(u32 from, u32 to) { return shared->pipes[from * ranks + to]; }
  void fail(int code, std::string why) { text = why, error = code; }
};
typedef std::shared_ptr<Comm> Handle;

// A part of an operation: bytes to or from another rank, behind a word that says how many.
struct Part {
  u32 peer;
  bool is_sent;
  u8 *at;
  u64 bytes, word = 0, done = 0;
};
// What was asked for. Counts of bytes are those of a rank's part, where ranks have parts.
struct Op {
  enum { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, SEND, RECV } kind;
  u8 *from, *to;
  u64 bytes;
  u32 peer;
};
struct Asked {
  Handle comm;
  void *stream;
  std::vector<Op> ops;
};

std::atomic<u32> calls, alive;
thread_local u32 depth = 0;
thread_local std::vector<Asked> group;
thread_local std::string last_error;

// Whether a variable names this rank and this number of a call, as 1:7. Call 0 is that which makes the communicator.
bool is_meant(const char *variable, u32 rank, u32 call) {
  const char *text = getenv(variable);
  return text && std::to_string(rank) + ":" + std::to_string(call) == text;
}
template <class Function> Function of_driver(const char *name) {
  static void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  return (Function)dlsym(driver, name);
}

// Moves what can be moved. Of parts to or from the same rank each waits for those before it.
bool progress(Comm &comm, std::vector<Part> &parts) {
  bool is_done = true;
  std::vector<bool> held(2 * comm.ranks);
  for (Part &part : parts) {
    u32 way = 2 * part.peer + part.is_sent;
    Pipe &pipe = part.is_sent ? comm.pipe(comm.rank, part.peer) : comm.pipe(part.peer, comm.rank);
    if (held[way] || part.done == part.bytes + 8) continue;
    if (part.is_sent) part.word = part.bytes;
    u8 *word = (u8 *)&part.word;
    for (u64 moved = 1; moved > 0 && part.done < part.bytes + 8; part.done += moved) {
      u8 *at = part.done < 8 ? word + part.done : part.at + part.done - 8;
      u64 most = part.done < 8 ? 8 - part.done : part.bytes + 8 - part.done;
      moved = part.is_sent ? pipe.put(at, most) : pipe.take(at, most);
      if (part.done + moved == 8 && part.word != part.bytes) {
        comm.fail(INVALID_USAGE, "rank " + std::to_string(part.peer) + " sends " + std::to_string(part.word) + " bytes where rank " +
                                     std::to_string(comm.rank) + " receives " + std::to_string(part.bytes));
        return false;
      }
    }
    if (part.done < part.bytes + 8) held[way] = true, is_done = false;
  }
  return is_done;
}

// What an operation sends and receives; `all` is room for the parts of all ranks.
void add_parts(Comm &comm, const Op &op, std::vector<u8> &all, std::vector<Part> &parts) {
  auto send = [&](u32 peer, u8 *from) { parts.push_back({peer, true, from, op.bytes}); };
  auto receive = [&](u32 peer, u8 *to) { parts.push_back({peer, false, to, op.bytes}); };
  switch (op.kind) {
  case Op::SEND: return send(op.peer, op.from);
  case Op::RECV: return receive(op.peer, op.to);
  default: break;
  }
  bool is_scattered = op.kind == Op::REDUCE_SCATTER;
  u8 *to = op.kind == Op::ALL_GATHER ? op.to : all.data();
  memmove(to + comm.rank * op.bytes, op.from + (is_scattered ? comm.rank * op.bytes : 0), op.bytes);
  for (u32 peer = 0; peer < comm.ranks; peer++) {
    if (peer == comm.rank) continue;
    send(peer, is_scattered ? op.from + peer * op.bytes : to + comm.rank * op.bytes);
    receive(peer, to + peer * op.bytes);
  }
}
// Sums from the last rank to the first: an order that is nobody's but the library's.
void add_up(Comm &comm, const Op &op, const std::vector<u8> &all) {
  if (op.kind != Op::ALL_REDUCE && op.kind != Op::REDUCE_SCATTER) return;
  auto of = [&](u32 rank) { return (const float *)(all.data() + rank * op.bytes); };
  float *to = (float *)op.to;
  for (u64 i = 0; i < op.bytes / 4; i++) {
    float sum = of(comm.ranks - 1)[i];
    for (u32 rank = comm.ranks - 1; rank-- > 0;) sum += of(rank)[i];
    to[i] = sum;
  }
}

// Does what was asked for, once the stream has come to it.
void run(Comm &comm, const std::vector<Op> &ops) {
  u32 call = ++comm.runs;
  bool hangs = is_meant("FAKE_NCCL_HANG", comm.rank, call);
  if (is_meant("FAKE_NCCL_FAIL", comm.rank, call)) comm.fail(REMOTE_ERROR, "a link is down");
  std::vector<std::vector<u8>> rooms(ops.size());
  std::vector<Part> parts;
  for (size_t i = 0; i < ops.size(); i++) {
    rooms[i].resize(ops[i].kind <= Op::REDUCE_SCATTER ? comm.ranks * ops[i].bytes : 0);
    add_parts(comm, ops[i], rooms[i], parts);
  }
  while (hangs || comm.error != SUCCESS || !progress(comm, parts)) {
    if (comm.is_aborted) return;
    std::this_thread::yield();
  }
  for (size_t i = 0; i < ops.size(); i++) add_up(comm, ops[i], rooms[i]);
}

int told(int code, const char *why) { return last_error = why, code; }

} // namespace fake

using namespace fake;
struct Config {
  size_t size;
  u32 magic, version;
  int blocking;
};
struct Id {
  char path[128];
};

extern "C" {

u32 fake_nccl_calls() { return calls; }
u32 fake_nccl_alive() { return alive; }

int ncclGetVersion(int *version) {
  const char *text = getenv("FAKE_NCCL_VERSION");
  return *version = text ? atoi(text) : 22907, SUCCESS;
}
const char *ncclGetErrorString(int code) {
  return code == REMOTE_ERROR    ? "remote process exited or there was a network error"
         : code == INVALID_USAGE ? "invalid usage"
                                 : "unhandled error";
}
const char *ncclGetLastError(Handle *comm) {
  if (comm && (*comm)->error != SUCCESS) last_error = (*comm)->text;
  return last_error.c_str();
}

int ncclGetUniqueId(Id *id) {
  static std::atomic<u32> made;
  const char *folder = getenv("TMPDIR");
  snprintf(id->path, sizeof id->path, "%s/nccl.%d.%u", folder ? folder : "/tmp", getpid(), made++);
  return SUCCESS;
}
int ncclCommInitRankConfig(Handle **made, int ranks, Id id, int rank, const Config *config) {
  bool is_known = config->size >= 40 && config->magic == 0xcafebeef && config->version >= 21700 && config->blocking == 0;
  if (!is_known || u32(ranks) > RANKS) return told(INVALID_ARGUMENT, "another configuration is expected");
  int gpu = of_driver<int (*)()>("fake_bound_device")();
  if (gpu < 0) return told(INVALID_USAGE, "the thread has no GPU");
  int file = open(id.path, O_RDWR | O_CREAT, 0600);
  size_t bytes = sizeof(Shared) + sizeof(Pipe) * ranks * ranks;
  if (file < 0 || ftruncate(file, bytes) != 0) return told(SYSTEM_ERROR, "no file");
  void *mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped == MAP_FAILED) return told(SYSTEM_ERROR, "no memory");
  Handle comm = std::make_shared<Comm>();
  comm->rank = rank, comm->ranks = ranks, comm->shared = (Shared *)mapped, comm->path = id.path;
  comm->shared->gpu_of_rank[rank] = gpu;
  if (!is_meant("FAKE_NCCL_HANG", rank, 0)) comm->shared->joined++;
  alive++;
  return *made = new Handle(comm), IN_PROGRESS;
}
int ncclCommGetAsyncError(Handle *handle, int *state) {
  Comm &comm = **handle;
  *state = comm.error;
  if (*state != SUCCESS) return SUCCESS;
  if (!comm.is_joined) {
    *state = IN_PROGRESS;
    if (comm.shared->joined < comm.ranks) return SUCCESS;
    unlink(comm.path.c_str());
    for (u32 a = 0; a < comm.ranks; a++)
      for (u32 b = 0; b < a; b++)
        if (comm.shared->gpu_of_rank[a] == comm.shared->gpu_of_rank[b]) comm.fail(INVALID_USAGE, "two ranks have one GPU");
    return comm.is_joined = true, *state = comm.error, SUCCESS;
  }
  if (comm.asked == 0) return SUCCESS;
  *state = IN_PROGRESS;
  if (--comm.asked == 0) comm.then();
  return SUCCESS;
}

int ncclGroupStart() { return depth++, SUCCESS; }
int ncclGroupEnd() {
  if (--depth > 0) return SUCCESS;
  for (Asked &asked : std::exchange(group, {})) {
    Handle comm = asked.comm;
    comm->asked = ASKED;
    comm->then = [=] {
      typedef void Add(void *stream, std::function<int()> work);
      of_driver<Add *>("fake_add")(asked.stream, [=] { return run(*comm, asked.ops), 0; });
    };
  }
  return IN_PROGRESS;
}

} // extern "C"

static int begin(Handle *handle, void *stream, Op op) {
  Handle &comm = *handle;
  if (!comm->is_joined || comm->asked > 0) return told(INVALID_USAGE, "the communicator is not ready");
  // All ranks would have to capture it, or none (NCCL's user guide: Using NCCL with CUDA Graphs).
  if (of_driver<bool (*)(void *)>("fake_is_captured")(stream)) return told(INVALID_USAGE, "the stream is captured");
  calls++;
  ncclGroupStart();
  bool is_new = group.empty() || group.back().comm != comm || group.back().stream != stream;
  if (is_new) group.push_back({comm, stream, {}});
  group.back().ops.push_back(op);
  return ncclGroupEnd();
}
static u64 size(int type) { return type == 1 ? 1 : 4; }

extern "C" {

int ncclAllReduce(u8 *from, u8 *to, size_t count, int type, int, Handle *comm, void *stream) {
  return begin(comm, stream, {Op::ALL_REDUCE, from, to, count * size(type), 0});
}
int ncclReduceScatter(u8 *from, u8 *to, size_t count, int type, int, Handle *comm, void *stream) {
  return begin(comm, stream, {Op::REDUCE_SCATTER, from, to, count * size(type), 0});
}
int ncclAllGather(u8 *from, u8 *to, size_t count, int type, Handle *comm, void *stream) {
  return begin(comm, stream, {Op::ALL_GATHER, from, to, count * size(type), 0});
}
int ncclSend(u8 *from, size_t count, int type, int peer, Handle *comm, void *stream) {
  return begin(comm, stream, {Op::SEND, from, nullptr, count * size(type), u32(peer)});
}
int ncclRecv(u8 *to, size_t count, int type, int peer, Handle *comm, void *stream) {
  return begin(comm, stream, {Op::RECV, nullptr, to, count * size(type), u32(peer)});
}

int ncclCommFinalize(Handle *comm) {
  return (*comm)->asked = ASKED, (*comm)->then = [comm] { (*comm)->is_finalized = true; }, IN_PROGRESS;
}
int ncclCommDestroy(Handle *comm) {
  (*comm)->then = nullptr;
  if (!(*comm)->is_finalized || comm->use_count() > 1) fprintf(stderr, "a communicator is destroyed that is in use\n"), abort();
  while (getenv("FAKE_NCCL_STAYS")) std::this_thread::sleep_for(std::chrono::seconds(1));
  return alive--, delete comm, SUCCESS;
}
int ncclCommAbort(Handle *comm) {
  (*comm)->is_aborted = true;
  return alive--, SUCCESS;
}

} // extern "C"
