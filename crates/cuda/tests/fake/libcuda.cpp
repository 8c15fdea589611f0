// NVIDIA's driver where there is none: the functions that are called, over host memory. Work waits in its stream, as long
// as it may, and only then reads and writes; so whatever must stay in its place until then is known to have stayed. Kernels
// are those of emulated.h, which comes before this.

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
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500, NOT_READY = 600,
  ALREADY_ENABLED = 704, FAILED = 719
};
constexpr u32 ARGUMENTS = 26;

u64 number(const char *variable, u64 otherwise) {
  const char *text = getenv(variable);
  return text ? strtoull(text, nullptr, 10) : otherwise;
}
// Bytes of a GPU's memory: those that nobody else uses, and all.
u64 of_process() { return number("FAKE_FREE_BYTES", 300 << 20); }
u64 total() { return number("FAKE_TOTAL_BYTES", 80ull << 30); }

// Whether kernels of a GPU run one at a time, in the order of their launches over all streams, as with one queue of the hardware.
bool is_serial() { return number("FAKE_SERIAL", 0); }

typedef std::function<int()> Run;
struct Work {
  Run run;
  bool is_kernel = false;
};
struct Device {
  u64 used = 0;
  std::set<Device *> peers;
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

// A queue of work with a thread of its own. That begins when somebody waits for it, or when nobody has for a while: so what is on
// its way is so for as long as it may be, and ranks whose kernels wait for each other still meet.
struct Stream {
  Device *device;
  std::mutex lock;
  std::condition_variable wake, progress;
  std::deque<Work> work;
  u64 done = 0;
  u32 waiting = 0;
  bool is_ended = false, is_captured = false, is_asked = false;
  std::vector<Work> captured;
  int failed = SUCCESS;
  std::thread thread{[this] { live(); }};
  explicit Stream(Device *device) : device(device) {}

  void add(Work next) {
    if (is_captured) return captured.push_back(next);
    if (next.is_kernel && is_serial()) next.run = device->in_order(next.run);
    std::lock_guard held(lock);
    work.push_back(next);
    if (waiting > 0) wake.notify_all();
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
  ~Stream() {
    wait(all());
    {
      std::lock_guard held(lock);
      is_ended = true;
      wake.notify_all();
    }
    thread.join();
  }
};
struct Event {
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
typedef void (*Emulated)(const u32 *, u32, u32, void **, u32);
struct Function {
  std::string name;
  Emulated run;
};
struct Allocation {
  size_t bytes;
  Device *device;
  // The file that other processes map, if this is memory that they can.
  int file = -1;
  bool is_of_other = false;
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
std::vector<Stream *> &streams = *new std::vector<Stream *>;
std::map<std::string, Function> &functions = *new std::map<std::string, Function>;
std::atomic<u32> graphs_made = 0, graph_launches = 0;
u32 marks = 0;
// Tells whoever reads the file FAKE_TOLD, if there is to be one.
void tell(const char *what) {
  const char *path = getenv("FAKE_TOLD");
  if (!path) return;
  FILE *file = fopen(path, "a");
  fprintf(file, "%s\n", what);
  fclose(file);
}
thread_local Device *bound = nullptr;

// Whether these bytes are of one allocation.
bool is_ours(u64 at, size_t bytes) {
  std::lock_guard held(all);
  auto next = memory.upper_bound(at);
  if (next == memory.begin()) return false;
  auto &[start, of] = *--next;
  return at + bytes <= start + of.bytes;
}

} // namespace fake

using namespace fake;

extern "C" {

u32 fake_graphs_made() { return graphs_made; }
u32 fake_graph_launches() { return graph_launches; }
// Ten times the compute capability, and its second digit.
u32 fake_capability() { return number("FAKE_CAPABILITY", 90); }
u32 fake_marks() { return marks; }
// For libraries that put kernels into streams: which GPU the thread has, and such a kernel.
int fake_bound_device() { return bound ? int(bound - devices.data()) : -1; }
void fake_add(Stream *stream, Run kernel) { stream->add({kernel, true}); }

int cuInit(u32) { return number("FAKE_INIT", SUCCESS); }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = int(devices.size()), SUCCESS; }
int cuDeviceGet(int *device, int ordinal) {
  return *device = ordinal, ordinal < int(devices.size()) ? SUCCESS : INVALID_DEVICE;
}
int cuDeviceGetName(char *name, int, int) { return strcpy(name, "Fake GPU"), SUCCESS; }
int cuDeviceGetUuid_v2(char *uuid, int device) { return memset(uuid, int(number("FAKE_FIRST_GPU", 0)) + device + 1, 16), SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = total(), SUCCESS; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  // One GPU may be an old one.
  u32 capability = device == int(number("FAKE_OLD_GPU", ~0u)) ? 75 : fake_capability();
  switch (which) {
  case 17: *value = number("FAKE_WATCHDOG", 0); break;
  case 16: *value = 2; break;
  case 75: *value = int(capability / 10); break;
  case 76: *value = int(capability % 10); break;
  case 97: *value = 227 << 10; break;
  case 115: *value = number("FAKE_POOL", 1); break;
  case 133: *value = number("FAKE_MPS", 0); break;
  default: return INVALID_VALUE;
  }
  return SUCCESS;
}
int cuDevicePrimaryCtxRetain(Device **context, int device) { return *context = &devices[device], SUCCESS; }
// Variables say whether GPUs reach each other.
int cuDeviceCanAccessPeer(int *can, int, int) { return *can = number("FAKE_PEERS", 1), SUCCESS; }
int cuCtxEnablePeerAccess(Device *context, u32) {
  if (!bound || context == bound) return INVALID_VALUE;
  return bound->peers.insert(context).second ? SUCCESS : ALREADY_ENABLED;
}
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(Device *context) { return bound = context, SUCCESS; }
int cuGetErrorName(int error, const char **name) {
  return *name = error == FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : error == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR",
         SUCCESS;
}
int cuGetErrorString(int error, const char **text) {
  return *text = error == FAILED ? "unspecified launch failure" : "something is wrong", SUCCESS;
}

int allocate(u64 *at, size_t bytes, int file) {
  if (!bound || bytes == 0) return INVALID_VALUE;
  std::lock_guard held(all);
  if (bytes > of_process() - std::min(bound->used, of_process())) return OUT_OF_MEMORY;
  if (file < 0) *at = u64(aligned_alloc(256, (bytes + 255) / 256 * 256));
  else if (ftruncate(file, bytes) == 0) *at = u64(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
  memset((void *)*at, 0xff, bytes);
  memory[*at] = {bytes, bound, file};
  bound->used += bytes;
  return SUCCESS;
}
int cuMemAlloc_v2(u64 *at, size_t bytes) { return allocate(at, bytes, memfd_create("fake", 0)); }
int cuIpcGetMemHandle(Handle *handle, u64 at) {
  std::lock_guard held(all);
  if (!memory.count(at) || memory[at].file < 0) return INVALID_VALUE;
  snprintf(handle->bytes, sizeof handle->bytes, "/proc/%d/fd/%d %zu", getpid(), memory[at].file, memory[at].bytes);
  return SUCCESS;
}
int cuIpcOpenMemHandle_v2(u64 *at, Handle handle, u32 flags) {
  char path[64];
  int process;
  size_t bytes;
  if (!bound || flags != 1 || sscanf(handle.bytes, "%63s %zu", path, &bytes) != 2) return INVALID_VALUE;
  // Nobody opens his own memory.
  if (sscanf(path, "/proc/%d/", &process) != 1 || process == getpid()) return INVALID_VALUE;
  int file = open(path, O_RDWR);
  if (file < 0) return INVALID_VALUE;
  std::lock_guard held(all);
  *at = u64(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
  close(file);
  memory[*at] = {bytes, bound, -1, true};
  return SUCCESS;
}
int cuIpcCloseMemHandle(u64 at) {
  std::lock_guard held(all);
  auto own = memory.find(at);
  if (own == memory.end() || !own->second.is_of_other) return INVALID_VALUE;
  unmap(at, own->second);
  return memory.erase(own), SUCCESS;
}
int cuMemFree_v2(u64 at) {
  std::vector<Stream *> there;
  {
    std::lock_guard held(all);
    if (!memory.count(at)) return INVALID_VALUE;
    there = streams;
  }
  for (Stream *stream : there)
    if (stream->device == bound) stream->wait(stream->all());
  std::lock_guard held(all);
  Allocation own = memory[at];
  memset((void *)at, 0xee, own.bytes);
  own.device->used -= own.bytes;
  memory.erase(at);
  unmap(at, own);
  return SUCCESS;
}
// In the stream's order: what is given back can be had again at once by who works in that stream.
int cuMemAllocAsync(u64 *at, size_t bytes, Stream *) { return allocate(at, bytes, -1); }
int cuMemFreeAsync(u64 at, Stream *stream) {
  std::lock_guard held(all);
  auto own = memory.find(at);
  if (own == memory.end()) return INVALID_VALUE;
  own->second.device->used -= own->second.bytes;
  stream->add({[=] {
    std::lock_guard held(all);
    memset((void *)at, 0xee, memory[at].bytes);
    memory.erase(at);
    free((void *)at);
    return int(SUCCESS);
  }});
  return SUCCESS;
}
int cuCtxGetLimit(size_t *value, int) { return *value = 1024, bound ? SUCCESS : INVALID_VALUE; }
int cuCtxSetLimit(int, size_t) { return bound ? SUCCESS : INVALID_VALUE; }
int cuDeviceGetDefaultMemPool(void **pool, int device) { return *pool = &devices[device], SUCCESS; }
int cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
int cuMemsetD8_v2(u64 at, u8 value, size_t bytes) {
  if (!is_ours(at, bytes)) return INVALID_VALUE;
  return memset((void *)at, value, bytes), SUCCESS;
}
int cuMemGetInfo_v2(size_t *free, size_t *of) {
  if (!bound) return INVALID_VALUE;
  std::lock_guard held(all);
  return *free = of_process() - std::min(bound->used, of_process()), *of = total(), SUCCESS;
}
int cuMemHostAlloc(void **at, size_t bytes, u32) { return *at = malloc(bytes), SUCCESS; }
int cuMemFreeHost(void *at) {
  // Whatever is still to be read there is read as this.
  return free(at), SUCCESS;
}

int cuStreamCreate(Stream **stream, u32) {
  if (!bound) return INVALID_VALUE;
  std::lock_guard held(all);
  return *stream = new Stream(bound), streams.push_back(*stream), SUCCESS;
}
int cuStreamDestroy_v2(Stream *stream) {
  {
    std::lock_guard held(all);
    streams.erase(std::find(streams.begin(), streams.end(), stream));
  }
  return delete stream, SUCCESS;
}
int cuStreamSynchronize(Stream *stream) {
  // Nothing is ever in the default stream.
  if (!stream) return SUCCESS;
  return stream->is_captured ? INVALID_VALUE : stream->wait(stream->all());
}
int cuStreamQuery(Stream *stream) { return stream->is_captured ? INVALID_VALUE : stream->query(); }
int cuEventCreate(Event **event, u32) { return *event = new Event, SUCCESS; }
int cuEventDestroy_v2(Event *event) { return delete event, SUCCESS; }
int cuEventRecordWithFlags(Event *event, Stream *stream, u32 flags) {
  // Within a capture one that is outside of it is meant, elsewhere there is none.
  if (flags != u32(stream->is_captured)) return INVALID_VALUE;
  if (!stream->is_captured) *event = {stream};
  stream->add({[=] { return event->ms = now_ms(), int(SUCCESS); }});
  if (!stream->is_captured) event->after = stream->all();
  return marks++, SUCCESS;
}
int cuEventRecord(Event *event, Stream *stream) { return cuEventRecordWithFlags(event, stream, 0); }
int cuEventElapsedTime(float *ms, Event *from, Event *to) {
  if (from->ms == 0 || to->ms == 0) return INVALID_VALUE;
  return *ms = to->ms - from->ms, SUCCESS;
}
int cuEventSynchronize(Event *event) {
  if (event->stream) event->stream->wait(event->after);
  return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, Stream *stream) {
  if (!is_ours(to, bytes)) return INVALID_VALUE;
  return stream->add({[=] { return memcpy((void *)to, from, bytes), SUCCESS; }}), SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, Stream *stream) {
  if (!is_ours(from, bytes)) return INVALID_VALUE;
  return stream->add({[=] { return memcpy(to, (const void *)from, bytes), SUCCESS; }}), SUCCESS;
}
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, Stream *stream) {
  if (!is_ours(from, bytes) || !is_ours(to, bytes)) return INVALID_VALUE;
  return stream->add({[=] { return memcpy((void *)to, (const void *)from, bytes), SUCCESS; }}), SUCCESS;
}

int cuModuleLoadData(const void **module, const char *code) {
  std::string wanted = "cubin for --gpu-architecture=sm_" + std::to_string(fake_capability());
  if (strncmp(code, wanted.c_str(), wanted.size())) return INVALID_VALUE;
  return *module = code, SUCCESS;
}
int cuModuleUnload(void *) { return SUCCESS; }
int cuModuleGetFunction(const Function **function, void *, const char *name) {
  Dl_info own;
  dladdr((void *)&fake_graph_launches, &own);
  static void *library = dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  std::lock_guard held(all);
  Emulated run = (Emulated)dlsym(library, (std::string("emulate_") + name).c_str());
  if (!run) return NOT_FOUND;
  return *function = &(functions[name] = {name, run}), SUCCESS;
}
int cuFuncGetAttribute(int *value, int, void *) { return *value = 1024, SUCCESS; }
int cuFuncSetAttribute(void *, int which, int value) { return which == 8 && value == 226 << 10 ? SUCCESS : INVALID_VALUE; }
int cuLaunchKernel(const Function *function, u32 x, u32 y, u32 z, u32 threads, u32, u32, u32 shared, Stream *stream, void **from,
                   void **) {
  if (threads > 1024) return INVALID_VALUE;
  std::vector<u64> slots;
  for (u32 i = 0; i < ARGUMENTS; i++) slots.push_back(*static_cast<u64 *>(from[i]));
  Run run = [=]() mutable {
    std::vector<void *> arguments;
    for (u64 &slot : slots) arguments.push_back(&slot);
    u32 grid[3] = {x, y, z};
    // Where a kernel whose first argument that is writes to nobody's memory, a GPU fails; a processor would be ended.
    if (function->name == "scale" && !is_ours(slots[0], 1)) return int(FAILED);
    return function->run(grid, threads, shared, arguments.data(), 0), int(SUCCESS);
  };
  return stream->add({run, true}), SUCCESS;
}

int cuStreamBeginCapture_v2(Stream *stream, int) { return stream->is_captured = true, SUCCESS; }
int cuStreamEndCapture(Stream *stream, Graph **graph) {
  *graph = new Graph(std::move(stream->captured));
  stream->captured.clear();
  return stream->is_captured = false, SUCCESS;
}
int cuGraphDestroy(Graph *graph) { return delete graph, SUCCESS; }
int cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, u64) {
  graphs_made++;
  tell("made");
  return *executable = new Graph(*graph), SUCCESS;
}
int cuGraphExecDestroy(Graph *graph) { return delete graph, SUCCESS; }
int cuGraphLaunch(Graph *graph, Stream *stream) {
  graph_launches++;
  tell("launched");
  for (Work &work : *graph) stream->add(work);
  return SUCCESS;
}

} // extern "C"
