// SPDX-License-Identifier: Apache-2.0
// Files that a fuzz target makes of its input, and what it may answer.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "espalier/error.h"

namespace espalier::fuzz {

// A folder of this process, the same at every call and removed at its end. What a target wrote stays until the next
// input replaces it, so a target writes or removes all the files that it reads.
const std::filesystem::path& scratch_folder();
std::filesystem::path write_scratch(std::string_view name, std::string_view bytes);
void remove_scratch(std::string_view name);

// The top of the sources, for the tokenizers and pictures that inputs are tried with.
std::filesystem::path source_folder();

// The parts between NULs, at most `most` of them: the last keeps what NULs it has.
std::vector<std::string_view> split(std::string_view input, size_t most);

// Throws std::logic_error, which no target may: a promise that does not depend on the input was broken.
void expect(bool holds, const char* promise);

// Runs `call`, which may refuse its input.
template <typename Call>
void may_refuse(Call&& call) {
  try {
    call();
  } catch (const Error&) {
  }
}

}  // namespace espalier::fuzz
