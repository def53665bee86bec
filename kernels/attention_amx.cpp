// SPDX-License-Identifier: Apache-2.0
// Blocked attention in bf16 on AMX, the matrix registers of Intel processors since Sapphire Rapids: the packed keys and
// values of the AVX-512 form are what they multiply, and softmax between the products is the same. A core there does
// eight times as many bf16 multiply-adds in them as in vector registers.
#include "kernels/attention_avx512.h"

namespace espalier::kernels {
namespace {

// Eight registers of 16 rows of 64 bytes: 16 x 16 sums, 16 rows of 32 numbers, or 16 pairs of rows of 16 columns.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct Bf16Tiles : Bf16Dot {
  static constexpr int64_t kGroupRows = 16;
  static constexpr int64_t kStepMultiple = 16;  // pairs that one instruction takes

  // The registers belong to the thread; other code sets them up for itself.
  struct Session {
    Session() {
      const TileShapes shapes;
      _tile_loadconfig(&shapes);
    }
    ~Session() { _tile_release(); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

  // c [16, 16 N] = a [16, 2 steps] times packed columns b [steps][column][2]. Strides in bytes.
  template <int N>
  static void multiply(const Element* a, int64_t a_stride, const Element* b, int64_t b_stride, int64_t steps, float* c,
                       int64_t c_stride) {
    asm volatile("" ::: "memory");  // the loads do not say that they read memory
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
    if constexpr (N > 2) _tile_zero(2);
    if constexpr (N > 3) _tile_zero(3);
    for (int64_t step = 0; step < steps; step += kStepMultiple) {
      _tile_loadd(4, a + step * kPair, a_stride);
      const Element* column = b + step * b_stride / static_cast<int64_t>(sizeof(Element));
      _tile_loadd(5, column, b_stride);
      _tile_dpbf16ps(0, 4, 5);
      if constexpr (N > 1) {
        _tile_loadd(6, column + 32, b_stride);
        _tile_dpbf16ps(1, 4, 6);
      }
      if constexpr (N > 2) {
        _tile_loadd(7, column + 64, b_stride);
        _tile_dpbf16ps(2, 4, 7);
      }
      if constexpr (N > 3) {
        _tile_loadd(5, column + 96, b_stride);
        _tile_dpbf16ps(3, 4, 5);
      }
    }
    _tile_stored(0, c, c_stride);
    if constexpr (N > 1) _tile_stored(1, c + 16, c_stride);
    if constexpr (N > 2) _tile_stored(2, c + 32, c_stride);
    if constexpr (N > 3) _tile_stored(3, c + 48, c_stride);
  }

  static void score_tile(const Element* query, int64_t query_stride, const Element* key, int64_t steps, float* score) {
    constexpr int64_t kTile = kTileVectors * Isa::kLanes;
    multiply<kTileVectors>(query, query_stride * 2, key, kTile * kPair * 2, steps, score, kBlockKeys * 4);
  }

  static void add_values(const Element* probability, const Element* value, int64_t value_width, int64_t steps,
                         const float (&correction)[kGroupRows], float* sum) {
    constexpr int64_t kColumns = kValueVectors * Isa::kLanes;
    alignas(64) float block[kGroupRows * kColumns];
    const int64_t value_stride = value_width * kPair * 2;
    for (int64_t column = 0; column < value_width; column += kColumns) {
      const int64_t width = smaller(kColumns, value_width - column);
      const auto multiply_columns = [&]<int N>() {
        multiply<N>(probability, kBlockKeys * 2, value + column * kPair, value_stride, steps, block, kColumns * 4);
      };
      if (width == 4 * Isa::kLanes)
        multiply_columns.template operator()<4>();
      else if (width == 3 * Isa::kLanes)
        multiply_columns.template operator()<3>();
      else if (width == 2 * Isa::kLanes)
        multiply_columns.template operator()<2>();
      else
        multiply_columns.template operator()<1>();
      for (int64_t r = 0; r < kGroupRows; ++r)
        for (int64_t c = 0; c < width; c += Isa::kLanes) {
          float* at = sum + r * value_width + column + c;
          Isa::store(at,
                     Isa::multiply_add(Isa::load(at), Isa::set(correction[r]), Isa::load(block + r * kColumns + c)));
        }
    }
  }
};

}  // namespace

const AttentionKernels* attention_amx(ElementType dtype) {
  static constexpr AttentionKernels kBf16 = kernels_of<Bf16Tiles>("amx_bf16");
  return dtype == ElementType::kBFloat16 ? &kBf16 : nullptr;
}

}  // namespace espalier::kernels
