// NVIDIA's library of matrix products where there is none: of two matrices of bf16, f16 or e4m3 that lie as the library has them, the
// first transposed, and a result in f32. Work waits in the stream, as the driver's does.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>

typedef uint64_t u64;
typedef uint16_t u16;

namespace {

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID = 7, NOT_SUPPORTED = 15 };
struct Description { int compute, scale, is_transposed; };
struct Layout { int type; u64 rows, cols; int64_t stride; };
struct Preference { u64 workspace; uint32_t alignments[4]; };
struct Algorithm { u64 data[8]; };
struct Heuristic { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };

// Of cudaDataType_t.
enum { FLOAT = 0, HALF = 2, BFLOAT = 14, E4M3 = 28 };

uint32_t asked = 0, multiplied = 0, multiplied_e4m3 = 0;

// Of e4m3 the library wants all in whole sixteens of bytes, and a GPU that multiplies it (8.9 or newer).
bool fits_e4m3(const Layout &a, const Layout &b, const Layout &d) {
  static void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  auto capability = (uint32_t (*)())dlsym(driver, "fake_capability");
  bool is_whole = a.rows % 16 == 0 && a.cols % 16 == 0 && a.stride % 16 == 0 && b.stride % 16 == 0 && d.stride % 4 == 0;
  return capability() >= 89 && is_whole;
}

// As cuda_fp8.h defines e4m3.
float of_e4m3(uint8_t code) {
  int exponent = code >> 3 & 15, mantissa = code & 7;
  float magnitude = exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
  if (exponent == 15 && mantissa == 7) magnitude = NAN;
  return code & 0x80 ? -magnitude : magnitude;
}

float value(const Layout &of, const void *at, u64 row, u64 col) {
  if (of.type == E4M3) return of_e4m3(static_cast<const uint8_t *>(at)[col * of.stride + row]);
  u16 bits = static_cast<const u16 *>(at)[col * of.stride + row];
  if (of.type == HALF) {
    _Float16 half;
    return memcpy(&half, &bits, 2), float(half);
  }
  uint32_t wide = uint32_t(bits) << 16;
  float x;
  return memcpy(&x, &wide, 4), x;
}

} // namespace

extern "C" {

uint32_t fake_asked() { return asked; }
uint32_t fake_multiplied() { return multiplied; }
uint32_t fake_multiplied_e4m3() { return multiplied_e4m3; }

int cublasLtCreate(void **handle) {
  if (getenv("FAKE_NO_CUBLASLT")) return NOT_INITIALIZED;
  return *handle = &asked, SUCCESS;
}
int cublasLtDestroy(void *) { return SUCCESS; }
const char *cublasLtGetStatusString(int status) {
  if (status == NOT_INITIALIZED) return "CUBLAS_STATUS_NOT_INITIALIZED";
  return status == INVALID ? "CUBLAS_STATUS_INVALID_VALUE" : "CUBLAS_STATUS";
}
int cublasLtMatmulDescCreate(Description **made, int compute, int scale) {
  return *made = new Description{compute, scale, 0}, SUCCESS;
}
int cublasLtMatmulDescSetAttribute(Description *of, int which, const int *value, size_t bytes) {
  if (which != 3 || bytes != 4) return INVALID;
  return of->is_transposed = *value, SUCCESS;
}
int cublasLtMatmulDescDestroy(Description *of) { return delete of, SUCCESS; }
int cublasLtMatrixLayoutCreate(Layout **made, int type, u64 rows, u64 cols, int64_t stride) {
  if (u64(stride) < rows) return INVALID;
  return *made = new Layout{type, rows, cols, stride}, SUCCESS;
}
int cublasLtMatrixLayoutDestroy(Layout *of) { return delete of, SUCCESS; }
int cublasLtMatmulPreferenceCreate(Preference **made) { return *made = new Preference{0, {256, 256, 256, 256}}, SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(Preference *of, int which, const void *value, size_t bytes) {
  if (which == 1 && bytes == 8) return memcpy(&of->workspace, value, 8), SUCCESS;
  if (which >= 5 && which <= 8 && bytes == 4) return memcpy(&of->alignments[which - 5], value, 4), SUCCESS;
  return INVALID;
}
int cublasLtMatmulPreferenceDestroy(Preference *of) { return delete of, SUCCESS; }

int cublasLtMatmulAlgoGetHeuristic(void *, const Description *of, const Layout *a, const Layout *b, const Layout *, const Layout *d,
                                   const Preference *preference, int, Heuristic *found, int *count) {
  asked++;
  bool fits = of->compute == 68 && of->scale == 0 && of->is_transposed == 1 && a->rows == b->rows && a->cols == d->rows;
  fits = fits && b->cols == d->cols && a->type == b->type && d->type == FLOAT && preference->workspace > 0;
  fits = fits && (a->type == HALF || a->type == BFLOAT || (a->type == E4M3 && fits_e4m3(*a, *b, *d)));
  for (uint32_t alignment : preference->alignments) fits = fits && (a->type != E4M3 || alignment % 16 == 0);
  *count = fits;
  // What is remembered must come back.
  *found = Heuristic{{{a->cols, a->rows, preference->alignments[0], preference->alignments[3], b->cols}}, 1024, SUCCESS, 1.0f, {}};
  return fits ? SUCCESS : NOT_SUPPORTED;
}

int cublasLtMatmul(void *, const Description *, const float *alpha, const char *a, const Layout *of_a, const char *b,
                   const Layout *of_b, const float *beta, const float *, const Layout *, float *d, const Layout *of_d,
                   const Algorithm *algorithm, void *workspace, size_t bytes, void *stream) {
  const u64 *of = algorithm->data;
  // An algorithm need not do for other sizes than it was asked for.
  bool fits = of[0] == of_a->cols && of[1] == of_a->rows && of[4] == of_b->cols && *alpha == 1.0f && *beta == 0.0f && workspace && bytes >= 1024;
  if (!fits || u64(a) % of[2] || u64(b) % of[2] || u64(d) % of[3]) return INVALID;
  multiplied++;
  multiplied_e4m3 += of_a->type == E4M3;
  static void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  auto add = (void (*)(void *, std::function<int()>))dlsym(driver, "fake_add");
  add(stream, [=, la = *of_a, lb = *of_b, ld = *of_d] {
    for (u64 col = 0; col < ld.cols; col++)
      for (u64 row = 0; row < ld.rows; row++) {
        double sum = 0;
        for (u64 k = 0; k < la.rows; k++) sum += double(value(la, a, k, row)) * value(lb, b, k, col);
        d[col * ld.stride + row] = float(sum);
      }
    return 0;
  });
  return SUCCESS;
}

} // extern "C"
