// NVIDIA's driver where there is none: the functions that are called, over host memory. Work waits in its stream until somebody
// waits for it, and only then reads and writes; so whatever must stay in its place until then is known to have stayed. Kernels
// are those of emulated.h, which comes before this.

#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <string>
#include <time.h>

namespace fake {

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, FAILED = 719 };
constexpr size_t FREE = 300 << 20, TOTAL = 80ull << 30;
constexpr u32 ARGUMENTS = 24;

typedef std::function<int()> Work;
struct Stream {
  std::deque<Work> work;
  u64 done = 0;
  bool is_captured = false;
  std::vector<Work> captured;
  int failed = SUCCESS;

  void add(Work next) {
    if (is_captured) captured.push_back(next);
    else work.push_back(next);
  }
  // Until so many are done.
  void run(u64 until) {
    for (; done < until && !work.empty(); done++) {
      int result = work.front()();
      work.pop_front();
      if (result != SUCCESS) failed = result;
    }
  }
  u64 all() { return done + work.size(); }
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
typedef void (*Run)(const u32 *, u32, u32, void **, u32);

std::map<u64, size_t> memory;
std::vector<Stream *> streams;
u32 graph_launches = 0, marks = 0;
thread_local bool is_bound = false;

// Whether these bytes are of one allocation.
bool is_ours(u64 at, size_t bytes) {
  auto next = memory.upper_bound(at);
  if (next == memory.begin()) return false;
  auto &[start, size] = *--next;
  return at + bytes <= start + size;
}

} // namespace fake

using namespace fake;

extern "C" {

u32 fake_graph_launches() { return graph_launches; }
u32 fake_marks() { return marks; }

int cuInit(u32) { return SUCCESS; }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, SUCCESS; }
int cuDeviceGetName(char *name, int, int) { return strcpy(name, "Fake GPU"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = TOTAL, SUCCESS; }
int cuDeviceGetAttribute(int *value, int which, int) {
  switch (which) {
  case 16: *value = 2; break;
  case 75: *value = 9; break;
  case 76: *value = 0; break;
  case 97: *value = 227 << 10; break;
  default: return INVALID_VALUE;
  }
  return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = &memory, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void *context) { return is_bound = context == &memory, SUCCESS; }
int cuGetErrorName(int error, const char **name) {
  return *name = error == FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : error == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR",
         SUCCESS;
}
int cuGetErrorString(int error, const char **text) {
  return *text = error == FAILED ? "unspecified launch failure" : "something is wrong", SUCCESS;
}

int cuMemAlloc_v2(u64 *at, size_t bytes) {
  if (!is_bound || bytes == 0) return INVALID_VALUE;
  if (bytes > FREE) return OUT_OF_MEMORY;
  *at = u64(aligned_alloc(256, (bytes + 255) / 256 * 256));
  memset((void *)*at, 0xff, bytes);
  memory[*at] = bytes;
  return SUCCESS;
}
int cuMemFree_v2(u64 at) {
  for (Stream *stream : streams) stream->run(stream->all());
  if (!memory.count(at)) return INVALID_VALUE;
  memset((void *)at, 0xee, memory[at]);
  memory.erase(at);
  free((void *)at);
  return SUCCESS;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = FREE, *total = TOTAL, SUCCESS; }
int cuMemHostAlloc(void **at, size_t bytes, u32) { return *at = malloc(bytes), SUCCESS; }
int cuMemFreeHost(void *at) {
  // Whatever is still to be read there is read as this.
  return free(at), SUCCESS;
}

int cuStreamCreate(Stream **stream, u32) {
  if (!is_bound) return INVALID_VALUE;
  return *stream = new Stream, streams.push_back(*stream), SUCCESS;
}
int cuStreamDestroy_v2(Stream *stream) {
  stream->run(stream->all());
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return SUCCESS;
}
int cuStreamSynchronize(Stream *stream) {
  if (stream->is_captured) return INVALID_VALUE;
  stream->run(stream->all());
  return stream->failed;
}
int cuEventCreate(Event **event, u32) { return *event = new Event, SUCCESS; }
int cuEventDestroy_v2(Event *event) { return delete event, SUCCESS; }
int cuEventRecordWithFlags(Event *event, Stream *stream, u32 flags) {
  // Within a capture one that is outside of it is meant, elsewhere there is none.
  if (flags != u32(stream->is_captured)) return INVALID_VALUE;
  stream->add([=] { return event->ms = now_ms(), int(SUCCESS); });
  if (!stream->is_captured) *event = {stream, stream->all(), 0};
  marks++;
  return SUCCESS;
}
int cuEventRecord(Event *event, Stream *stream) { return cuEventRecordWithFlags(event, stream, 0); }
int cuEventElapsedTime(float *ms, Event *from, Event *to) {
  if (from->ms == 0 || to->ms == 0) return INVALID_VALUE;
  return *ms = to->ms - from->ms, SUCCESS;
}
int cuEventSynchronize(Event *event) {
  if (event->stream) event->stream->run(event->after);
  return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, Stream *stream) {
  if (!is_ours(to, bytes)) return INVALID_VALUE;
  return stream->add([=] { return memcpy((void *)to, from, bytes), SUCCESS; }), SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, Stream *stream) {
  if (!is_ours(from, bytes)) return INVALID_VALUE;
  return stream->add([=] { return memcpy(to, (const void *)from, bytes), SUCCESS; }), SUCCESS;
}
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, Stream *stream) {
  if (!is_ours(from, bytes) || !is_ours(to, bytes)) return INVALID_VALUE;
  return stream->add([=] { return memcpy((void *)to, (const void *)from, bytes), SUCCESS; }), SUCCESS;
}

int cuModuleLoadData(void **module, const char *code) {
  if (strncmp(code, "cubin for --gpu-architecture=sm_90a", 35)) return INVALID_VALUE;
  return *module = &memory, SUCCESS;
}
int cuModuleUnload(void *) { return SUCCESS; }
int cuModuleGetFunction(Run *run, void *, const char *name) {
  Dl_info own;
  dladdr((void *)&fake_graph_launches, &own);
  static void *library = dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  *run = (Run)dlsym(library, (std::string("emulate_") + name).c_str());
  return *run ? SUCCESS : NOT_FOUND;
}
int cuFuncGetAttribute(int *value, int, Run) { return *value = 1024, SUCCESS; }
int cuFuncSetAttribute(Run, int which, int value) { return which == 8 && value == 226 << 10 ? SUCCESS : INVALID_VALUE; }
int cuLaunchKernel(Run run, u32 x, u32 y, u32 z, u32 threads, u32, u32, u32 shared, Stream *stream, void **from, void **) {
  if (threads > 1024) return INVALID_VALUE;
  std::vector<u64> slots;
  for (u32 i = 0; i < ARGUMENTS; i++) slots.push_back(*static_cast<u64 *>(from[i]));
  stream->add([=]() mutable {
    std::vector<void *> arguments;
    for (u64 &slot : slots) arguments.push_back(&slot);
    u32 grid[3] = {x, y, z};
    // The first argument of every kernel that is tried is where it writes.
    if (!is_ours(slots[0], 1)) return int(FAILED);
    return run(grid, threads, shared, arguments.data(), 0), int(SUCCESS);
  });
  return SUCCESS;
}

int cuStreamBeginCapture_v2(Stream *stream, int) { return stream->is_captured = true, SUCCESS; }
int cuStreamEndCapture(Stream *stream, Graph **graph) {
  *graph = new Graph(std::move(stream->captured));
  stream->captured.clear();
  return stream->is_captured = false, SUCCESS;
}
int cuGraphDestroy(Graph *graph) { return delete graph, SUCCESS; }
int cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, u64) { return *executable = new Graph(*graph), SUCCESS; }
int cuGraphExecDestroy(Graph *graph) { return delete graph, SUCCESS; }
int cuGraphLaunch(Graph *graph, Stream *stream) {
  graph_launches++;
  for (Work &work : *graph) stream->add(work);
  return SUCCESS;
}

} // extern "C"
