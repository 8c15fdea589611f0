// NVIDIA's compiler where there is none. What it makes says for what it was asked.

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string>

struct Program { std::string source, code, log; };
static std::atomic<int> compiled;

extern "C" {

int fake_compiled() { return compiled; }

int nvrtcVersion(int *major, int *minor) { return *major = 13, *minor = 0, 0; }
int nvrtcGetNumSupportedArchs(int *count) { return *count = 2, 0; }
int nvrtcGetSupportedArchs(int *architectures) { return architectures[0] = 80, architectures[1] = 90, 0; }
const char *nvrtcGetErrorString(int error) { return error == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR"; }
int nvrtcCreateProgram(Program **program, const char *source, const char *, int, const char **, const char **) {
  return *program = new Program{source, "", ""}, 0;
}
int nvrtcDestroyProgram(Program **program) { return delete *program, 0; }
int nvrtcCompileProgram(Program *program, int count, const char **options) {
  if (getenv("FAKE_ERROR") && program->source.find("\"norm.cu\"") != std::string::npos)
    return program->log = "norm.cu(12): error: expected a \";\"", 6;
  // As where the compiler was copied without what it loads.
  if (getenv("FAKE_NO_BUILTINS")) return program->log = "error: failed to open libnvrtc-builtins.so.13.0.\n", 7;
  program->code = "cubin for ";
  for (int i = 0; i < count; i++) program->code += std::string(options[i]) + " ";
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (driver) program->code += ((const char *(*)())dlsym(driver, "fake_kernels"))();
  // Whether it works at all is tried with a kernel of nothing.
  compiled += program->source.find("void nothing()") == std::string::npos;
  return 0;
}
int nvrtcGetCUBINSize(Program *program, size_t *size) { return *size = program->code.size() + 1, 0; }
int nvrtcGetCUBIN(Program *program, char *code) { return strcpy(code, program->code.c_str()), 0; }
int nvrtcGetPTXSize(Program *program, size_t *size) { return *size = program->code.size() + 1, 0; }
int nvrtcGetPTX(Program *program, char *code) { return strcpy(code, program->code.c_str()), 0; }
int nvrtcGetProgramLogSize(Program *program, size_t *size) { return *size = program->log.size() + 1, 0; }
int nvrtcGetProgramLog(Program *program, char *log) { return strcpy(log, program->log.c_str()), 0; }

} // extern "C"
