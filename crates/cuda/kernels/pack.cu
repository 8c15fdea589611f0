// Weights as kernels take them, of rows as they are stored: `rows` [count][k], the outputs from a panel's first on.
//
// Limited by the bytes that come from the host, some fifty times as slow as this memory.

struct Stored {
  // f32, bf16 or f16: 0, 1, 2.
  const u8 *rows;
  u32 type, count, k;
  DEVICE_IN float value(const Stored &of, u32 row, u32 input) {
    u64 at = u64(row) * of.k + input;
    if (of.type == 0) return reinterpret_cast<const float *>(of.rows)[at];
    u16 bits = reinterpret_cast<const u16 *>(of.rows)[at];
    return of.type == 1 ? float_of(u32(bits) << 16) : half_to_float(bits);
  }
};

// A lane's place (crates/cuda/src/linear/tiles.rs): which panel of the rows, which tile, and how many inputs that has from where.
struct PackPlace {
  u32 panel, tile, lane, first, inputs;
  bool is_there;
  DEVICE_IN PackPlace of(const Stored &rows, u32 period, u32 width, u32 tiles) {
    u64 at = u64(block_x()) * threads() + thread();
    PackPlace place{u32(at / 32 / tiles), u32(at / 32 % tiles), u32(at % 32), 0, 0, false};
    place.is_there = place.panel < (rows.count + 15) / 16;
    u32 per_period = (period + width - 1) / width, start = place.tile / per_period * period;
    u32 end = start + period < rows.k ? start + period : rows.k;
    place.first = start + place.tile % per_period * width;
    place.inputs = end - place.first < width ? end - place.first : width;
    return place;
  }
  DEVICE_IN float value(const PackPlace &of, const Stored &rows, u32 row, u32 input) {
    u32 output = of.panel * 16 + row;
    return output < rows.count && input < of.inputs ? Stored::value(rows, output, of.first + input) : 0.0f;
  }
};

// To bf16, or f16. A thread per lane of a tile of 16 inputs.
KERNEL(pack_sixteen)
(Vec4 *out, const u8 *rows, u32 type, u32 count, u32 k, u32 period, u32 tiles, u32 is_half) {
  Stored stored{rows, type, count, k};
  PackPlace place = PackPlace::of(stored, period, 16, tiles);
  if (!place.is_there) return;
  u32 words[4];
  UNROLL for (u32 i = 0; i < 4; i++) {
    u32 row = place.lane / 4 + 8 * (i % 2), input = place.lane % 4 * 2 + 8 * (i / 2);
    float low = PackPlace::value(place, stored, row, input), high = PackPlace::value(place, stored, row, input + 1);
    words[i] = is_half ? two_halfs(low, high) : two_bfloats(low, high);
  }
  out[(u64(place.panel) * tiles + place.tile) * 32 + place.lane] = Vec4{words[0], words[1], words[2], words[3]};
}
EXPORT(pack_sixteen)

// As crates/tensor/src/format.rs does all of this.
DEVICE float bfloat_up(float x) { return float_of((bits_of(x) + 0xffffu) & 0xffff0000u); }
DEVICE float within(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// To groups of 32 inputs: e4m3, int8 or int4: 2, 3, 4. A warp per tile, in which four lanes have the inputs of two rows.
KERNEL(pack_groups)
(u8 *out, u8 *scales, u8 *zeros, const u8 *rows, u32 type, u32 count, u32 k, u32 period, u32 tiles, u32 format) {
  Stored stored{rows, type, count, k};
  PackPlace place = PackPlace::of(stored, period, 32, tiles);
  u64 tile = u64(place.panel) * tiles + place.tile;
  // Whole warps are beyond the last tile.
  if (!place.is_there) return;
  u32 bytes[2][8];
  UNROLL for (u32 i = 0; i < 2; i++) {
    u32 row = place.lane / 4 + 8 * i;
    float values[8], most = 0.0f, low = 0.0f, high = 0.0f;
    UNROLL for (u32 j = 0; j < 8; j++) {
      u32 half = j / 4, column = place.lane % 4;
      u32 input = 16 * half + (format == 2 ? 2 * column + j % 2 + j % 4 / 2 * 8 : 4 * column + j % 4);
      float w = PackPlace::value(place, stored, row, input), size = magnitude(w);
      values[j] = w;
      if (size > most) most = size;
      if (w < low) low = w;
      if (w > high) high = w;
    }
    UNROLL for (u32 step = 1; step < 4; step *= 2) {
      float other = shuffle_xor(most, step), other_low = shuffle_xor(low, step), other_high = shuffle_xor(high, step);
      if (other > most) most = other;
      if (other_low < low) low = other_low;
      if (other_high > high) high = other_high;
    }
    bool is_first = place.lane % 4 == 0;
    if (format == 2) {
      u32 exponent = (bits_of(most / 448.0f) + 0x7fffffu) >> 23;
      exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
      float inverse = float_of((254 - exponent) << 23);
      UNROLL for (u32 j = 0; j < 8; j++) bytes[i][j] = fp8_of(values[j] * inverse);
      if (is_first) scales[tile * 16 + row] = u8(exponent);
    } else {
      float scale = bfloat_up(format == 3 ? most / 127.0f : high / 240.0f - low / 240.0f);
      float zero = format == 4 && scale != 0.0f ? whole(-low / scale) : 0.0f;
      UNROLL for (u32 j = 0; j < 8; j++) {
        float q = values[j] / scale;
        q = format == 3 ? within(whole(q), -127.0f, 127.0f) : within(whole((q + zero) / 16.0f), 0.0f, 15.0f);
        bytes[i][j] = scale != 0.0f ? u32(int(q)) & 0xff : 0;
      }
      if (is_first) reinterpret_cast<u16 *>(scales)[tile * 16 + row] = u16(bits_of(scale) >> 16);
      if (is_first && format == 4) zeros[tile * 16 + row] = u8(zero);
    }
  }
  auto four = [&](u32 i, u32 from) {
    u32 word = 0;
    UNROLL for (u32 j = 0; j < 4; j++) word |= bytes[i][from + j] << 8 * j;
    return word;
  };
  u64 at = tile * 32 + place.lane;
  if (format == 4) reinterpret_cast<Vec2 *>(out)[at] = Vec2{four(0, 0) | four(0, 4) << 4, four(1, 0) | four(1, 4) << 4};
  else reinterpret_cast<Vec4 *>(out)[at] = Vec4{four(0, 0), four(1, 0), four(0, 4), four(1, 4)};
}
EXPORT(pack_groups)

// Of e4m3 as it is stored, [count][k]. A thread per lane of a tile.
KERNEL(pack_bytes)(Vec4 *out, const u8 *rows, u32 count, u32 k, u32 period, u32 tiles) {
  PackPlace place = PackPlace::of(Stored{rows, 0, count, k}, period, 32, tiles);
  if (!place.is_there) return;
  u32 words[4] = {};
  UNROLL for (u32 i = 0; i < 4; i++) {
    u32 output = place.panel * 16 + place.lane / 4 + 8 * (i % 2);
    UNROLL for (u32 j = 0; j < 4; j++) {
      u32 input = 16 * (i / 2) + place.lane % 4 * 2 + j % 2 + j / 2 * 8;
      if (output < count && input < place.inputs) words[i] |= u32(rows[u64(output) * k + place.first + input]) << 8 * j;
    }
  }
  out[(u64(place.panel) * tiles + place.tile) * 32 + place.lane] = Vec4{words[0], words[1], words[2], words[3]};
}
EXPORT(pack_bytes)

// To f32, [k][n], of rows that are outputs from `first` on. A thread per element, neighbours of the same input.
KERNEL(pack_columns)(float *out, const u8 *rows, u32 type, u32 count, u32 k, u32 first, u32 n) {
  u64 at = u64(block_x()) * threads() + thread();
  if (at >= u64(count) * k) return;
  u32 row = u32(at % count), input = u32(at / count);
  out[u64(input) * n + first + row] = Stored::value(Stored{rows, type, count, k}, row, input);
}
EXPORT(pack_columns)
