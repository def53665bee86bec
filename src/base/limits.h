// SPDX-License-Identifier: Apache-2.0
// What a file or a caller may ask for at most. No real input comes near; one that passes a limit is refused with an
// Error that names the limit, before the memory is taken or the time is spent. Two more stand in public headers:
// kMaxImagePixels (image.h) and kMaxSamples (scheduler.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace espalier::limits {

// ---- files ----
inline constexpr int64_t kTextFileBytes = int64_t{1} << 28;  // JSON, templates, logs
inline constexpr int64_t kDataFileBytes = int64_t{1} << 32;  // lists of conversations: LLaVA's own has a gigabyte
inline constexpr int64_t kPictureFileBytes = int64_t{1} << 30;
inline constexpr size_t kJsonDepth = 256;               // of lists and objects in one another
inline constexpr size_t kJsonValues = size_t{1} << 27;  // in one file
inline constexpr size_t kHeaderBytes = 100'000'000;     // of safetensors, as in the reference implementation

// ---- messages ----
inline constexpr size_t kShownCharacters = 80;  // of a value that a message quotes
inline constexpr size_t kMessageBytes = 1500;   // of a whole message

// ---- pictures ----
// libjpeg-turbo's "Two Issues with the JPEG Standard" names progressive pictures of a few hundred bytes per scan whose
// scans each cost a pass over all coefficients. Encoders write about ten.
inline constexpr int64_t kJpegScans = 100;
inline constexpr int64_t kJpegScannedPixels = 2'000'000'000;  // pixels times scans: 20 scans of the largest picture

// ---- layouts of recordings ----
inline constexpr int64_t kLayoutTokens = int64_t{1} << 20;
inline constexpr int64_t kLayoutImages = 4096;
inline constexpr int64_t kLayers = 1000;  // of a decoder or a vision tower

// ---- tokenizers ----
inline constexpr int64_t kTokenId = (1 << 24) - 1;           // tables are as long as the largest id
inline constexpr size_t kAddedTokenBytes = 512;              // of one added token
inline constexpr size_t kReplacementBytes = 256;             // of what a step of normalizer or decoder puts in
inline constexpr size_t kTokenizerSteps = 64;                // of one Sequence
inline constexpr size_t kNormalizedBytes = size_t{1} << 24;  // of a text behind its normalizer
inline constexpr size_t kDecodedTokenBytes = size_t{1} << 20;

// ---- chat templates ----
inline constexpr size_t kTemplateBytes = size_t{1} << 20;
inline constexpr int kTemplateDepth = 200;       // of expressions and statements in one another
inline constexpr int kTemplateOperands = 1000;   // within one tag
inline constexpr int kTemplateValueDepth = 100;  // of lists and dicts in one another
// Every evaluated node, every copied or compared element and every 64 bytes of copied text is a step.
inline constexpr size_t kTemplateSteps = size_t{1} << 21;
inline constexpr size_t kTemplateText = size_t{1} << 24;   // bytes of a string, and of the whole output
inline constexpr size_t kTemplateItems = size_t{1} << 18;  // of a list
inline constexpr int64_t kTemplateRange = 100'000;         // of range()

}  // namespace espalier::limits
