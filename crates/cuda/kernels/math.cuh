// Functions of elements: those of crates/tensor/src/math.rs, with the same bits.

// As x86's maxps and minps do it.
DEVICE float larger(float a, float b) { return a > b ? a : b; }
DEVICE float smaller(float a, float b) { return a < b ? a : b; }
DEVICE float magnitude(float x) { return float_of(bits_of(x) & 0x7fffffffu); }
DEVICE float with_sign(float x, float sign) {
  return float_of((bits_of(x) & 0x7fffffffu) | (bits_of(sign) & 0x80000000u));
}
DEVICE float power_of_two(float x) { return float_of(u32(int(x) + 127) << 23); }

DEVICE float exponential(float x) {
  x = smaller(88.7f, larger(-105.0f, x));
  float n = whole(x * 1.44269504088896340736f);
  float r = fused(n, -0.6933594f, x);
  r = fused(n, 2.1219444e-4f, r);
  float p = 1.0f / 5040.0f;
  p = fused(p, r, 1.0f / 720.0f);
  p = fused(p, r, 1.0f / 120.0f);
  p = fused(p, r, 1.0f / 24.0f);
  p = fused(p, r, 1.0f / 6.0f);
  p = fused(p, r, 0.5f);
  p = fused(p, r, 1.0f);
  p = fused(p, r, 1.0f);
  float half = whole(n * 0.5f);
  return p * power_of_two(half) * power_of_two(n - half);
}

DEVICE float hyperbolic_tangent(float x) {
  float a = magnitude(x), z = x * x;
  float p = -5.7049887e-3f;
  p = fused(p, z, 2.0639089e-2f);
  p = fused(p, z, -5.3739715e-2f);
  p = fused(p, z, 1.3331442e-1f);
  p = fused(p, z, -3.3333282e-1f);
  float small = fused(x * z, p, x);
  float t = exponential(a * -2.0f);
  float large = with_sign((1.0f - t) / (1.0f + t), x);
  return a < 0.625f ? small : large;
}

DEVICE float silu(float x) { return x / (1.0f + exponential(0.0f - x)); }

DEVICE float gelu_tanh(float x) {
  float inner = fused(x * x * x, 0.044715f, x) * 0.7978846f;
  return x * 0.5f * (1.0f + hyperbolic_tangent(inner));
}

DEVICE float gelu_erf(float x) {
  float z = magnitude(x) * 0.70710678118654752440f;
  float t = 1.0f / fused(z, 0.3275911f, 1.0f);
  float p = 1.0614054f;
  p = fused(p, t, -1.453152f);
  p = fused(p, t, 1.4214138f);
  p = fused(p, t, -0.28449674f);
  p = fused(p, t, 0.2548296f);
  float tail = p * t * exponential(0.0f - z * z);
  float erf = with_sign(1.0f - tail, x);
  return x * 0.5f * (1.0f + erf);
}

// In the order of tensor::Activation.
DEVICE float activation(u32 which, float x) {
  switch (which) {
  case 0: return silu(x);
  case 1: return gelu_tanh(x);
  case 2: return gelu_erf(x);
  default: return larger(x, 0.0f);
  }
}

// The e4m3 nearest to a number, ties to even, as crates/tensor/src/fp8.rs finds it.
DEVICE u32 fp8_of(float x) {
  float size = magnitude(x);
  u32 bits = bits_of(size), rounded = (bits + 0x7ffffu + (bits >> 20 & 1)) >> 20, code;
  if (size < 1.0f / 64.0f) code = bits_of(size + 16384.0f) - bits_of(16384.0f);
  else code = rounded > 120 * 8 ? rounded - 120 * 8 : 0;
  return (code < 0x7e ? code : 0x7e) | (bits_of(x) >> 24 & 0x80);
}

struct SineCosine { double sine, cosine; };

// Of |x| < 2^30.
DEVICE SineCosine sine_cosine(double x) {
  double n = whole(x * 0.63661977236758134308);
  double r = ((x - n * 1.57079632673412561417) - n * 6.0771005065039659766e-11) - n * 2.022266248795950632e-21;
  double z = r * r, s = 1.0, c = 1.0;
  for (int k = 9; k >= 1; k--) {
    s = 1.0 - s * z / double((2 * k) * (2 * k + 1));
    c = 1.0 - c * z / double((2 * k - 1) * (2 * k));
  }
  s = s * r;
  switch ((long long)(n) & 3) {
  case 0: return {s, c};
  case 1: return {c, -s};
  case 2: return {-s, -c};
  default: return {-c, s};
  }
}

// The 16 lanes of a norm or a softmax, added by halves: every lane of 16 neighbours of a warp gets the sum. Lane l's partner
// is l + 8, then l + 4, + 2, + 1, so the left operand is always that of the lower lane.
DEVICE float sum_by_halves(float x) {
  u32 lane = thread() % 16;
  for (u32 step = 8; step > 0; step /= 2) {
    float other = shuffle_xor(x, step);
    x = lane & step ? other + x : x + other;
  }
  return x;
}
