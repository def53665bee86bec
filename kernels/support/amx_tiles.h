// SPDX-License-Identifier: Apache-2.0
// The matrix registers of AMX as kernels here use them. Included by units compiled with AMX only; all of it is in an
// anonymous namespace.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace espalier::kernels {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTilePairs = 16;  // pairs of bf16 that one product takes from a row

// Eight registers, as multiply_tiles uses them: 0-3 sums, `num_rows` x 16; 4 as many rows of 32 numbers; 5-7 16 pairs
// of rows of 16 columns.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};

  explicit TileShapes(int64_t num_rows) {
    for (int i = 0; i < 5; ++i) rows[i] = static_cast<uint8_t>(num_rows);
  }
};

// Gives the thread its registers, for products of up to 16 rows; of 0 rows: does without. Other code sets them up for
// itself.
struct TileSession {
  bool is_open;

  explicit TileSession(int64_t num_rows) : is_open(num_rows > 0) {
    if (is_open) set_rows(num_rows);
  }
  ~TileSession() {
    if (is_open) _tile_release();
  }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;

  static void set_rows(int64_t num_rows) {
    const TileShapes shapes(num_rows);
    _tile_loadconfig(&shapes);
  }
};

// c [rows, 16 N] = a [rows, 2 steps] times columns b [steps][column][2], bf16, sums in float32; steps is a multiple of
// kTilePairs, rows those of the session. Strides in bytes.
template <int N>
void multiply_tiles(const void* a, int64_t a_stride, const void* b, int64_t b_stride, int64_t steps, float* c,
                    int64_t c_stride) {
  static_assert(N >= 1 && N <= 4);
  asm volatile("" ::: "memory");  // GCC's loads do not say that they read memory
  _tile_zero(0);
  if constexpr (N > 1) _tile_zero(1);
  if constexpr (N > 2) _tile_zero(2);
  if constexpr (N > 3) _tile_zero(3);
  const auto* row = static_cast<const char*>(a);
  const auto* column = static_cast<const char*>(b);
  for (int64_t step = 0; step < steps; step += kTilePairs, row += 64, column += kTilePairs * b_stride) {
    _tile_loadd(4, row, a_stride);
    _tile_loadd(5, column, b_stride);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (N > 1) {
      _tile_loadd(6, column + 64, b_stride);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (N > 2) {
      _tile_loadd(7, column + 128, b_stride);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (N > 3) {
      _tile_loadd(5, column + 192, b_stride);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, c, c_stride);
  if constexpr (N > 1) _tile_stored(1, c + 16, c_stride);
  if constexpr (N > 2) _tile_stored(2, c + 32, c_stride);
  if constexpr (N > 3) _tile_stored(3, c + 48, c_stride);
}

// The same for `columns` columns, 1 to 64; sums of all begun groups of 16 are written.
inline void multiply_tiles(const void* a, int64_t a_stride, const void* b, int64_t b_stride, int64_t steps,
                           int64_t columns, float* c, int64_t c_stride) {
  if (columns > 48) return multiply_tiles<4>(a, a_stride, b, b_stride, steps, c, c_stride);
  if (columns > 32) return multiply_tiles<3>(a, a_stride, b, b_stride, steps, c, c_stride);
  if (columns > 16) return multiply_tiles<2>(a, a_stride, b, b_stride, steps, c, c_stride);
  multiply_tiles<1>(a, a_stride, b, b_stride, steps, c, c_stride);
}

}  // namespace
}  // namespace espalier::kernels
