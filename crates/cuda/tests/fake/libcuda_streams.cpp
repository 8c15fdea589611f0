// The functions of streams: events, copies, launches, and what is captured. See libcuda_state.cpp.

extern "C" {

int cuStreamCreate(Stream **stream, u32) {
  CHECK(current);
  std::lock_guard held(all);
  return *stream = new Stream, streams.push_back(*stream), SUCCESS;
}
int cuStreamDestroy_v2(Stream *stream) {
  CHECK(there, stream);
  {
    std::lock_guard held(all);
    streams.erase(std::find(streams.begin(), streams.end(), stream));
  }
  return stream->end(), SUCCESS;
}

// Nobody waits for what was captured, which is not under way.
static int waitable(const char *function, Stream *stream) {
  CHECK(uncaptured);
  CHECK(there, stream);
  if (!stream->is_captured) return SUCCESS;
  return stream->is_invalid = true, refuse(function, CAPTURE_UNSUPPORTED, "the stream is captured");
}
int cuStreamSynchronize(Stream *stream) {
  // Nothing is ever in the default stream.
  if (!stream) return uncaptured(__func__);
  CHECK(waitable, stream);
  return stream->wait();
}
int cuStreamQuery(Stream *stream) {
  CHECK(waitable, stream);
  return stream->query();
}

int cuEventCreate(Event **event, u32 flags) {
  CHECK(current);
  *event = new Event;
  return (*event)->is_timed = !(flags & 2), SUCCESS;
}
int cuEventDestroy_v2(Event *event) {
  CHECK(there, event);
  return event->is_ended = true, SUCCESS;
}
int cuEventRecordWithFlags(Event *event, Stream *stream, u32 flags) {
  CHECK(there, event);
  CHECK(there, stream);
  if (event->device != stream->device) return refuse(__func__, INVALID_HANDLE, "the event and the stream are of two contexts");
  // One that is outside of the capture is meant, as there is in a capture only.
  bool is_external = flags == 1;
  if (is_external && !stream->is_captured) return INVALID_VALUE;
  marks++;
  if (!is_external) event->is_captured = stream->is_captured;
  if (!stream->is_captured) event->stream = stream, event->ms = 0;
  int added = stream->add({[=] { return event->ms = now_ms(), int(SUCCESS); }});
  if (!stream->is_captured) event->after = stream->all();
  return added;
}
int cuEventRecord(Event *event, Stream *stream) { return cuEventRecordWithFlags(event, stream, 0); }
int cuEventElapsedTime(float *ms, Event *from, Event *to) {
  CHECK(there, from);
  CHECK(there, to);
  if (from->device != to->device || !from->is_timed || !to->is_timed) return INVALID_HANDLE;
  if (from->ms == 0 || to->ms == 0) return INVALID_VALUE;
  return *ms = to->ms - from->ms, SUCCESS;
}
int cuEventSynchronize(Event *event) {
  CHECK(uncaptured);
  CHECK(there, event);
  if (event->is_captured) return refuse(__func__, CAPTURED_EVENT, "the event was captured");
  if (event->stream) event->stream->wait(event->after);
  return SUCCESS;
}

// A copy. Of memory that is not fixed in its place it waits for the stream, and is done when the call returns; so nothing of that is
// captured.
static int copy(const char *function, void *to, const void *from, size_t bytes, u64 on_gpu, const void *on_host, Stream *stream) {
  CHECK(there, stream);
  if (!is_ours(on_gpu, bytes)) return INVALID_VALUE;
  if (!reaches(stream->device, on_gpu)) return refuse(function, INVALID_VALUE, "memory of another GPU that is not reached");
  Work work = {[=] { return memcpy(to, from, bytes), int(SUCCESS); }};
  if (!on_host || is_pinned(on_host, bytes)) return stream->add(work);
  CHECK(waitable, stream);
  int failed = stream->wait();
  return work.run(), failed;
}
int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, Stream *stream) {
  return copy(__func__, (void *)to, from, bytes, to, from, stream);
}
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, Stream *stream) {
  return copy(__func__, to, (const void *)from, bytes, from, to, stream);
}
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, Stream *stream) {
  CHECK(current);
  if (!is_ours(to, bytes)) return INVALID_VALUE;
  if (!reaches(stream->device, to)) return refuse(__func__, INVALID_VALUE, "memory of another GPU that is not reached");
  return copy(__func__, (void *)to, (const void *)from, bytes, from, nullptr, stream);
}

// Limits are those of the CUDA C++ Programming Guide: technical specifications per compute capability, launch bounds.
int cuLaunchKernel(const Function *function, u32 x, u32 y, u32 z, u32 threads, u32, u32, u32 shared, Stream *stream, void **from,
                   void **) {
  CHECK(own, function);
  CHECK(own, function->module);
  CHECK(own, stream);
  if (x - 1 >= 0x7fffffff || y - 1 >= 65535 || z - 1 >= 65535 || threads - 1 >= 1024 || shared > function->shared) return INVALID_VALUE;
  if (threads > function->threads) return OUT_OF_RESOURCES;
  std::vector<u64> slots;
  for (u32 i = 0; i < ARGUMENTS; i++) slots.push_back(*static_cast<u64 *>(from[i]));
  Run run = [=]() mutable {
    std::vector<void *> arguments;
    for (u64 &slot : slots) arguments.push_back(&slot);
    u32 grid[3] = {x, y, z};
    // Where a kernel whose first argument that is writes to nobody's memory, a GPU fails; a processor would be ended.
    if (function->name == "scale" && !is_ours(slots[0], 1)) return int(FAILED);
    for (u32 i = 0; i < function->arguments; i++)
      if (!reaches(stream->device, slots[i])) return refuse(function->name.c_str(), ILLEGAL_ADDRESS, "memory of another GPU");
    return function->run(grid, threads, shared, arguments.data(), 0), int(SUCCESS);
  };
  return stream->add({run, true});
}

int cuStreamBeginCapture_v2(Stream *stream, int mode) {
  CHECK(there, stream);
  // Ranks are threads: one that captures must not keep others from what they do.
  if (mode != 1 || stream->is_captured) return ILLEGAL_STATE;
  stream->capturer = std::this_thread::get_id();
  capturing.insert(stream);
  return stream->is_invalid = false, stream->is_captured = true, SUCCESS;
}
int cuStreamEndCapture(Stream *stream, Graph **graph) {
  *graph = nullptr;
  CHECK(there, stream);
  if (!stream->is_captured) return ILLEGAL_STATE;
  if (stream->capturer != std::this_thread::get_id()) return refuse(__func__, CAPTURE_WRONG_THREAD, "another thread began");
  capturing.erase(stream);
  stream->is_captured = false;
  Graph all = std::move(stream->captured);
  stream->captured.clear();
  if (stream->is_invalid.exchange(false)) return CAPTURE_INVALIDATED;
  return *graph = new Graph(std::move(all)), SUCCESS;
}
int cuGraphDestroy(Graph *graph) { return delete graph, SUCCESS; }
int cuGraphInstantiateWithFlags(Executable **executable, Graph *graph, u64) {
  CHECK(uncaptured);
  CHECK(may_wait_for_all, 2);
  graphs_made++, graphs_alive++;
  tell("made");
  *executable = new Executable;
  return (*executable)->graph = *graph, SUCCESS;
}
int cuGraphExecDestroy(Executable *executable) {
  CHECK(uncaptured);
  CHECK(there, executable);
  CHECK(may_wait_for_all, 2);
  graphs_alive--;
  executable->graph.clear();
  return executable->is_ended = true, SUCCESS;
}
// Without it the first launch does the same.
int cuGraphUpload(Executable *executable, Stream *stream) {
  CHECK(own, executable);
  CHECK(own, stream);
  if (executable->is_uploaded) return SUCCESS;
  CHECK(may_wait_for_all, 2);
  return executable->is_uploaded = true, SUCCESS;
}
int cuGraphLaunch(Executable *executable, Stream *stream) {
  if (int error = cuGraphUpload(executable, stream)) return error;
  graph_launches++, own_graph_launches++;
  tell("launched");
  for (Work &work : executable->graph)
    if (int error = stream->add(work)) return error;
  return SUCCESS;
}

} // extern "C"
