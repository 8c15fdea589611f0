// The functions of GPUs: contexts, memory, modules. See libcuda_state.cpp.

extern "C" {

u32 fake_graphs_made() { return graphs_made; }
// Executables that were not destroyed.
u32 fake_graphs_alive() { return graphs_alive; }
u32 fake_graph_launches() { return graph_launches; }
// Those of the thread that asks.
u32 fake_own_graph_launches() { return own_graph_launches; }
// Ten times the compute capability, and its second digit.
u32 fake_capability() { return number("FAKE_CAPABILITY", 90); }
u32 fake_marks() { return marks; }
// For libraries that put kernels into streams: which GPU the thread has, whether a stream is captured, and such a kernel.
int fake_bound_device() { return bound ? int(bound - devices.data()) : -1; }
bool fake_is_captured(const Stream *stream) { return stream->is_captured; }
void fake_add(Stream *stream, Run kernel) { stream->add({kernel, true}); }
// All kernels, as PTX declares them: their names are among those of this library's functions.
const char *fake_kernels() {
  static const std::string declared = [] {
    Dl_info of;
    dladdr((void *)&fake_kernels, &of);
    std::string bytes, declared, before(1, '\0');
    char part[1 << 16];
    int file = open(of.dli_fname, O_RDONLY);
    for (ssize_t count; (count = read(file, part, sizeof part)) > 0;) bytes.append(part, count);
    close(file);
    before += "emulate_";
    for (size_t at = 0; (at = bytes.find(before, at)) != bytes.npos; at++)
      declared += std::string("\n.entry ") + (bytes.c_str() + at + before.size());
    return declared;
  }();
  return declared.c_str();
}

// A list of none hides all.
int cuInit(u32) {
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  return visible && !*visible ? NO_DEVICE : number("FAKE_INIT", SUCCESS);
}
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
  case 97: *value = MOST_SHARED; break;
  case 115: *value = number("FAKE_POOL", 1); break;
  case 133: *value = number("FAKE_MPS", 0); break;
  default: return INVALID_VALUE;
  }
  return SUCCESS;
}
int cuGetErrorName(int error, const char **name) {
  switch (error) {
  case FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
  case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
  case CAPTURE_UNSUPPORTED: *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
  case CAPTURE_INVALIDATED: *name = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
  default: *name = "CUDA_ERROR";
  }
  return SUCCESS;
}
int cuGetErrorString(int error, const char **text) {
  return *text = error == FAILED ? "unspecified launch failure" : "something is wrong", SUCCESS;
}

int cuDevicePrimaryCtxRetain(Device **context, int device) {
  std::lock_guard held(all);
  return devices[device].retained++, *context = &devices[device], SUCCESS;
}
// The last who has it destroys it, with all that is of it: whoever uses its memory then is ended.
int cuDevicePrimaryCtxRelease_v2(int number) {
  Device *device = &devices[number];
  std::vector<Stream *> ended;
  {
    std::lock_guard held(all);
    if (device->retained == 0) return refuse(__func__, INVALID_CONTEXT, "nobody has the context");
    if (--device->retained > 0) return SUCCESS;
    for (Stream *stream : streams)
      if (stream->device == device) ended.push_back(stream);
  }
  for (Stream *stream : ended) stream->end();
  std::lock_guard held(all);
  device->life++;
  device->peers.clear();
  device->used = 0;
  for (auto at = memory.begin(); at != memory.end();) {
    bool is_own = at->second.device == device;
    if (is_own) unmap(at->first, at->second);
    at = is_own ? memory.erase(at) : std::next(at);
  }
  for (auto at = pinned.begin(); at != pinned.end();) {
    bool is_own = at->second.device == device;
    if (is_own) mprotect((void *)at->first, at->second.bytes, PROT_NONE);
    at = is_own ? pinned.erase(at) : std::next(at);
  }
  return SUCCESS;
}
int cuCtxSetCurrent(Device *context) {
  if (context && context->retained == 0) return refuse(__func__, CONTEXT_IS_DESTROYED, "the context was destroyed");
  return bound = context, SUCCESS;
}
// Variables say whether GPUs reach each other.
int cuDeviceCanAccessPeer(int *can, int, int) { return *can = number("FAKE_PEERS", 1), SUCCESS; }
int cuCtxEnablePeerAccess(Device *context, u32) {
  CHECK(current);
  if (context == bound) return INVALID_VALUE;
  std::lock_guard held(all);
  return bound->peers.insert(context).second ? SUCCESS : ALREADY_ENABLED;
}
int cuCtxGetLimit(size_t *value, int) { return *value = 1024, bound ? SUCCESS : INVALID_CONTEXT; }
int cuCtxSetLimit(int, size_t) {
  CHECK(uncaptured);
  return may_wait_for_all(__func__);
}

int allocate(u64 *at, size_t bytes, int file) {
  if (bytes == 0) return INVALID_VALUE;
  std::lock_guard held(all);
  if (bytes > of_process() - std::min(bound->used, of_process())) return OUT_OF_MEMORY;
  if (file < 0) *at = u64(aligned_alloc(256, (bytes + 255) / 256 * 256));
  else if (ftruncate(file, bytes) == 0) *at = u64(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
  memset((void *)*at, 0xff, bytes);
  memory[*at] = {bytes, bound, file};
  bound->used += bytes;
  return SUCCESS;
}
int cuMemAlloc_v2(u64 *at, size_t bytes) {
  CHECK(uncaptured);
  CHECK(may_wait_for_all);
  return allocate(at, bytes, memfd_create("fake", 0));
}
int cuIpcGetMemHandle(Handle *handle, u64 at) {
  CHECK(current);
  std::lock_guard held(all);
  if (!memory.count(at) || memory[at].file < 0) return INVALID_VALUE;
  snprintf(handle->bytes, sizeof handle->bytes, "/proc/%d/fd/%d %zu", getpid(), memory[at].file, memory[at].bytes);
  return SUCCESS;
}
int cuIpcOpenMemHandle_v2(u64 *at, Handle handle, u32 flags) {
  CHECK(uncaptured);
  char path[64];
  int process;
  size_t bytes;
  if (flags != 1 || sscanf(handle.bytes, "%63s %zu", path, &bytes) != 2) return INVALID_VALUE;
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
  CHECK(uncaptured);
  std::lock_guard held(all);
  auto own = memory.find(at);
  if (own == memory.end() || !own->second.is_of_other) return INVALID_VALUE;
  unmap(at, own->second);
  return memory.erase(own), SUCCESS;
}
int cuMemFree_v2(u64 at) {
  CHECK(uncaptured);
  {
    std::lock_guard held(all);
    auto own = memory.find(at);
    if (own == memory.end()) return INVALID_VALUE;
    if (own->second.device != bound) return refuse(__func__, INVALID_VALUE, "it is memory of another context");
  }
  wait_for_all();
  std::lock_guard held(all);
  Allocation own = memory[at];
  memset((void *)at, 0xee, own.bytes);
  own.device->used -= own.bytes;
  memory.erase(at);
  unmap(at, own);
  return SUCCESS;
}
// In the stream's order: what is given back can be had again at once by who works in that stream. Captured, both would be part of
// the graph, which nobody here means.
int cuMemAllocAsync(u64 *at, size_t bytes, Stream *stream) {
  CHECK(uncaptured);
  CHECK(own, stream);
  return allocate(at, bytes, -1);
}
int cuMemFreeAsync(u64 at, Stream *stream) {
  CHECK(uncaptured);
  CHECK(own, stream);
  std::lock_guard held(all);
  auto own = memory.find(at);
  if (own == memory.end()) return INVALID_VALUE;
  own->second.device->used -= own->second.bytes;
  return stream->add({[=] {
    std::lock_guard held(all);
    memset((void *)at, 0xee, memory[at].bytes);
    memory.erase(at);
    free((void *)at);
    return int(SUCCESS);
  }});
}
int cuDeviceGetDefaultMemPool(void **pool, int device) { return *pool = &devices[device], SUCCESS; }
int cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
int cuMemsetD8_v2(u64 at, u8 value, size_t bytes) {
  CHECK(uncaptured);
  if (!is_ours(at, bytes)) return INVALID_VALUE;
  CHECK(may_wait_for_all);
  return memset((void *)at, value, bytes), SUCCESS;
}
int cuMemGetInfo_v2(size_t *free, size_t *of) {
  CHECK(current);
  std::lock_guard held(all);
  return *free = of_process() - std::min(bound->used, of_process()), *of = total(), SUCCESS;
}
int cuMemHostAlloc(void **at, size_t bytes, u32) {
  CHECK(uncaptured);
  CHECK(may_wait_for_all);
  *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*at == MAP_FAILED) return OUT_OF_MEMORY;
  memset(*at, 0xff, bytes);
  std::lock_guard held(all);
  return pinned[u64(*at)] = {bytes, bound}, SUCCESS;
}
int cuMemFreeHost(void *at) {
  CHECK(uncaptured);
  std::lock_guard held(all);
  auto own = pinned.find(u64(at));
  if (own == pinned.end()) return refuse(__func__, INVALID_VALUE, "it was not allocated, or its context was destroyed");
  munmap(at, own->second.bytes);
  return pinned.erase(own), SUCCESS;
}

int cuModuleLoadData(Module **module, const char *code) {
  CHECK(uncaptured);
  std::string wanted = "cubin for --gpu-architecture=sm_" + std::to_string(fake_capability());
  if (strncmp(code, wanted.c_str(), wanted.size())) return INVALID_VALUE;
  CHECK(may_wait_for_all);
  return *module = new Module, SUCCESS;
}
int cuModuleUnload(Module *module) {
  CHECK(uncaptured);
  CHECK(own, module);
  return module->is_ended = true, SUCCESS;
}
int cuModuleGetFunction(Function **function, Module *module, const char *name) {
  CHECK(own, module);
  Dl_info of;
  dladdr((void *)&fake_graph_launches, &of);
  static void *library = dlopen(of.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  auto found = [&](const char *what) { return dlsym(library, (std::string(what) + name).c_str()); };
  Emulated run = (Emulated)found("emulate_");
  if (!run) return NOT_FOUND;
  auto counted = [&](const char *what) { return ((u32(*)())found(what))(); };
  *function = new Function;
  (*function)->module = module, (*function)->name = name, (*function)->run = run;
  (*function)->arguments = counted("arguments_of_"), (*function)->threads = counted("threads_of_");
  return SUCCESS;
}
int cuFuncGetAttribute(int *value, int, Function *function) {
  CHECK(own, function);
  return *value = OWN_SHARED, SUCCESS;
}
int cuFuncSetAttribute(Function *function, int which, int value) {
  CHECK(own, function);
  if (which != 8 || value < 0 || value > MOST_SHARED - OWN_SHARED) return INVALID_VALUE;
  if (!std::exchange(function->is_ready, true)) CHECK(may_wait_for_all, 2);
  return function->shared = value, SUCCESS;
}

} // extern "C"
