// SPDX-License-Identifier: Apache-2.0
// Blocked attention in bf16 on AMX, the matrix registers of Intel processors since Sapphire Rapids: the packed keys and
// values of the AVX-512 form are what they multiply, and softmax between the products is the same. (On the one it was
// measured on, dot products in vector registers run at a tenth of their rate.)
#include "kernels/ops/attention/attention_avx512.h"
#include "kernels/support/amx_tiles.h"

namespace espalier::kernels {
namespace {

struct Bf16Tiles : Bf16Dot {
  static constexpr int64_t kGroupRows = kTileRows, kStepMultiple = kTilePairs;

  // Setting the registers up takes longer than a few rows' work, which does without.
  struct Session : TileSession {
    explicit Session(int64_t num_rows) : TileSession(num_rows > kVectorRows ? kTileRows : 0) {}
  };

  static void score_tile(const Element* query, int64_t query_stride, const Element* key, int64_t steps, float* score) {
    constexpr int64_t kTile = kTileVectors * Isa::kLanes;
    multiply_tiles<kTileVectors>(query, query_stride * 2, key, kTile * kPair * 2, steps, score, kBlockKeys * 4);
  }

  static void add_values(const Element* probability, const Element* value, int64_t value_width, int64_t steps,
                         const float (&correction)[kGroupRows], float* sum) {
    constexpr int64_t kColumns = kValueVectors * Isa::kLanes;
    alignas(64) float block[kGroupRows * kColumns];
    const int64_t value_stride = value_width * kPair * 2;
    for (int64_t column = 0; column < value_width; column += kColumns) {
      const int64_t width = smaller(kColumns, value_width - column);
      multiply_tiles(probability, kBlockKeys * 2, value + column * kPair, value_stride, steps, width, block,
                     kColumns * 4);
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
