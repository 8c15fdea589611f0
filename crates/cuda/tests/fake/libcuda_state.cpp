// NVIDIA's driver where there is none: the functions that are called, over host memory. Work waits in its stream, as long
// as it may, and only then reads and writes; so whatever must stay in its place until then is known to have stayed. Kernels
// are those of emulated.h, which comes before this. What the driver refuses by its documentation is refused here, and ends the
// program with a word about it, since who gives back what he has looks at no error: unless FAKE_REFUSES says that errors are wanted.
// This is what there is; libcuda.cpp and libcuda_streams.cpp, which come behind it, are the functions.

#include <atomic>
#include <condition_variable>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>
#include <fcntl.h>
#include <thread>
#include <time.h>
#include <unistd.h>

namespace fake {

enum {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, OUT_OF_RESOURCES = 701, TIMEOUT = 702, ALREADY_ENABLED = 704,
  CONTEXT_IS_DESTROYED = 709, FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURED_EVENT = 907,
  CAPTURE_WRONG_THREAD = 908
};
constexpr u32 ARGUMENTS = 26;
// Bytes of shared memory: what a block may have, without asking for it, and what a kernel has of its own.
constexpr u32 MOST_SHARED = 227 << 10, SHARED_UNASKED = 48 << 10, OWN_SHARED = 1 << 10;

u64 number(const char *variable, u64 otherwise) {
  const char *text = getenv(variable);
  return text ? strtoull(text, nullptr, 10) : otherwise;
}
// Bytes of a GPU's memory: those that nobody else uses, and all.
u64 of_process() { return number("FAKE_FREE_BYTES", 300 << 20); }
u64 total() { return number("FAKE_TOTAL_BYTES", 80ull << 30); }
// Whether kernels of a GPU run one at a time, in the order of their launches over all streams, as with one queue of the hardware.
bool is_serial() { return number("FAKE_SERIAL", 0); }

int refuse(const char *function, int error, const char *why) {
  if (number("FAKE_REFUSES", 0)) return error;
  fprintf(stderr, "libcuda: %s: %s\n", function, why);
  abort();
}

typedef std::function<int()> Run;
struct Work {
  Run run;
  bool is_kernel = false;
};

// A GPU and its primary context.
struct Device {
  u64 used = 0;
  std::set<Device *> peers;
  // Who has the context, and how often it was destroyed.
  u32 retained = 0;
  std::atomic<u64> life = 0;
  // Kernels that were launched, and those that have run.
  std::mutex lock;
  std::condition_variable next;
  u64 launched = 0, ran = 0;

  // A kernel that waits for those launched before it.
  Run in_order(Run run) {
    std::lock_guard held(lock);
    return [=, own = launched++] {
      std::unique_lock held(lock);
      next.wait(held, [&] { return ran == own; });
      held.unlock();
      int result = run();
      held.lock();
      return ran++, next.notify_all(), result;
    };
  }
};
thread_local Device *bound = nullptr;

// What is of a context. It stays in memory behind its end, so that whoever uses it then is found out.
struct Owned {
  Device *device = bound;
  u64 life = bound->life;
  std::atomic<bool> is_ended = false;
  bool is_there() const { return !is_ended && life == device->life; }
};

// A queue of work with a thread of its own. That begins when somebody waits for it, or when nobody has for a while: so what is on
// its way is so for as long as it may be, and ranks whose kernels wait for each other still meet.
struct Stream : Owned {
  std::mutex lock;
  std::condition_variable wake, progress;
  std::deque<Work> work;
  u64 done = 0;
  u32 waiting = 0;
  bool is_asked = false;
  // Of a capture: it can be ended by the thread that began it, and gives nothing once anything was done that it can't have.
  std::atomic<bool> is_captured = false, is_invalid = false;
  std::thread::id capturer;
  std::vector<Work> captured;
  int failed = SUCCESS;
  std::thread thread{[this] { live(); }};

  int add(Work next) {
    if (is_invalid) return CAPTURE_INVALIDATED;
    if (is_captured) return captured.push_back(next), SUCCESS;
    if (next.is_kernel && is_serial()) next.run = device->in_order(next.run);
    std::lock_guard held(lock);
    work.push_back(next);
    if (waiting > 0) wake.notify_all();
    return SUCCESS;
  }
  u64 all() {
    std::lock_guard held(lock);
    return done + work.size();
  }
  // Until so many are done.
  int wait(u64 until) {
    std::unique_lock held(lock);
    waiting++;
    wake.notify_all();
    progress.wait(held, [&] { return done >= until; });
    waiting--;
    return failed;
  }
  int wait() { return wait(all()); }
  // Whether that was so in time.
  bool waits_for_all(double most_ms) {
    std::unique_lock held(lock);
    u64 until = done + work.size();
    waiting++;
    wake.notify_all();
    bool is_done = progress.wait_for(held, std::chrono::duration<double, std::milli>(most_ms), [&] { return done >= until; });
    return waiting--, is_done;
  }
  // Whether all are done; who asks wants them to be.
  int query() {
    std::lock_guard held(lock);
    if (work.empty()) return is_asked = false, failed;
    return is_asked = true, wake.notify_all(), NOT_READY;
  }
  void live() {
    std::unique_lock held(lock);
    while (!is_ended) {
      wake.wait_for(held, std::chrono::milliseconds(20), [&] { return is_ended || ((waiting > 0 || is_asked) && !work.empty()); });
      for (u64 until = done + work.size(); done < until; done++, progress.notify_all()) {
        Work next = std::move(work.front());
        held.unlock();
        int result = next.run();
        held.lock();
        work.pop_front();
        if (result != SUCCESS) failed = result;
      }
    }
  }
  void end() {
    if (is_ended) return;
    wait();
    {
      std::lock_guard held(lock);
      is_ended = true;
      wake.notify_all();
    }
    thread.join();
  }
};
struct Event : Owned {
  bool is_timed = true, is_captured = false;
  Stream *stream = nullptr;
  u64 after = 0;
  // 0: not yet.
  double ms = 0;
};

double now_ms() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}
typedef std::vector<Work> Graph;
struct Executable : Owned {
  Graph graph;
  bool is_uploaded = false;
};
struct Module : Owned {};
typedef void (*Emulated)(const u32 *, u32, u32, void **, u32);
struct Function : Owned {
  const Module *module;
  std::string name;
  Emulated run;
  u32 arguments, threads, shared = SHARED_UNASKED - OWN_SHARED;
  bool is_ready = false;
};
struct Allocation {
  size_t bytes;
  Device *device;
  // The file that other processes map, if this is memory that they can.
  int file = -1;
  bool is_of_other = false;
};
struct Pinned {
  size_t bytes;
  Device *device;
};
struct Handle {
  char bytes[64];
};
void unmap(u64 at, const Allocation &own) {
  if (own.file < 0 && !own.is_of_other) return free((void *)at);
  munmap((void *)at, own.bytes);
  if (own.file >= 0) close(own.file);
}

// Never destroyed: threads may still be at work when the process ends.
std::mutex &all = *new std::mutex;
std::vector<Device> &devices = *new std::vector<Device>(number("FAKE_GPUS", 1));
std::map<u64, Allocation> &memory = *new std::map<u64, Allocation>;
std::map<u64, Pinned> &pinned = *new std::map<u64, Pinned>;
std::vector<Stream *> &streams = *new std::vector<Stream *>;
std::atomic<u32> graphs_made = 0, graphs_alive = 0, graph_launches = 0;
u32 marks = 0;
thread_local u32 own_graph_launches = 0;
// Streams that this thread captures.
thread_local std::set<Stream *> capturing;

// Tells whoever reads the file FAKE_TOLD, if there is to be one.
void tell(const char *what) {
  const char *path = getenv("FAKE_TOLD");
  if (!path) return;
  FILE *file = fopen(path, "a");
  fprintf(file, "%s\n", what);
  fclose(file);
}

// The allocation that these bytes are of, if they are of one. Whoever asks has the lock.
template <class Of> auto found(std::map<u64, Of> &in, u64 at, size_t bytes) {
  auto next = in.upper_bound(at);
  if (next == in.begin() || at + bytes > std::prev(next)->first + std::prev(next)->second.bytes) return in.end();
  return std::prev(next);
}
bool is_ours(u64 at, size_t bytes) {
  std::lock_guard held(all);
  return found(memory, at, bytes) != memory.end();
}
// Whether host memory is fixed in its place.
bool is_pinned(const void *at, size_t bytes) {
  std::lock_guard held(all);
  return found(pinned, u64(at), bytes) != pinned.end();
}
// Whether work of a GPU may use what is there: memory of another GPU once it reaches that, but none of a pool.
bool reaches(Device *device, u64 at) {
  std::lock_guard held(all);
  auto of = found(memory, at, 1);
  if (of == memory.end() || of->second.device == device) return true;
  return device->peers.count(of->second.device) && of->second.file >= 0;
}

// Waits for all that runs on the current GPU. False if that is not done in time.
bool wait_for_all(double most_ms = 1e9) {
  std::vector<Stream *> there;
  {
    std::lock_guard held(all);
    there = streams;
  }
  for (Stream *stream : there)
    if (stream->device == bound && stream->is_there() && !stream->waits_for_all(most_ms)) return false;
  return true;
}
// What may wait for that, if FAKE_WAITS says so; it tells if that was long, and refuses if it is in vain: then kernels wait for something
// that comes behind this call. From 1 on it is what the CUDA C++ Programming Guide names (implicit synchronization), from 2 on whatever
// is not said to be asynchronous.
int may_wait_for_all(const char *function, u64 from = 1) {
  if (number("FAKE_WAITS", 0) < from) return SUCCESS;
  double began = now_ms();
  if (!wait_for_all(15e3)) return refuse(function, TIMEOUT, "it waits in vain for all that runs");
  if (now_ms() - began > 1000) fprintf(stderr, "libcuda: %s waited %.1f s for all that ran\n", function, (now_ms() - began) / 1e3);
  return SUCCESS;
}

// Checks of a call, which are over if there is something to say.
int current(const char *function) {
  if (!bound) return refuse(function, INVALID_CONTEXT, "the thread has no context");
  return bound->retained > 0 ? int(SUCCESS) : refuse(function, CONTEXT_IS_DESTROYED, "the context was destroyed");
}
// What a capture does not see is none of its graph: so it may not be asked for by the thread that captures (CUDA's documentation of
// cuThreadExchangeStreamCaptureMode), and neither may be waited for what is not under way.
int uncaptured(const char *function) {
  if (int error = current(function)) return error;
  for (Stream *stream : capturing) stream->is_invalid = true;
  return capturing.empty() ? int(SUCCESS) : refuse(function, CAPTURE_UNSUPPORTED, "this thread captures a stream");
}
int there(const char *function, const Owned *owned) {
  if (int error = current(function)) return error;
  return owned->is_there() ? int(SUCCESS) : refuse(function, INVALID_HANDLE, "what it is given is not there any more");
}
int own(const char *function, const Owned *owned) {
  if (int error = there(function, owned)) return error;
  return owned->device == bound ? int(SUCCESS) : refuse(function, INVALID_HANDLE, "what it is given is of another context");
}
#define CHECK(check, ...)                                                                                              \
  if (int error = check(__func__, ##__VA_ARGS__)) return error

} // namespace fake

using namespace fake;
