// SPDX-License-Identifier: Apache-2.0
#include "training/trained_checkpoint.h"

#include <fcntl.h>
#include <torch/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <vector>

#include "base/output_file.h"
#include "espalier/error.h"
#include "model/checkpoint.h"

namespace espalier {

namespace {

namespace fs = std::filesystem;

void write_weights(const fs::path& from, const fs::path& to, const Parameters& parameters) {
  const SafetensorsFile file = SafetensorsFile::open(from);
  std::vector<at::Tensor> held;
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, view] : file.tensors()) {
    const std::string canonical = canonical_name(name);
    const void* data = view.bytes.data();
    if (parameters.has(canonical)) {
      held.push_back(parameters.at(canonical).detach().cpu().to(scalar_type_of(view.dtype)).contiguous());
      data = held.back().const_data_ptr();
    }
    tensors.push_back({name, view.dtype, view.shape, data});
  }
  write_safetensors(to, tensors, file.metadata());
}

constexpr const char* kMovedAside = "-old";

// What runs left that were killed. A model that was moved aside is the only one until another is in its place.
void remove_left_over(const fs::path& of, bool moved_aside) {
  std::error_code failure;
  std::vector<fs::path> left;
  for (auto entry = fs::directory_iterator(of.parent_path(), failure); !failure && entry != fs::directory_iterator();
       entry.increment(failure)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(of.filename().string() + ".partial-") && name.ends_with(kMovedAside) == moved_aside)
      left.push_back(entry->path());
  }
  for (const fs::path& folder : left) fs::remove_all(folder, failure);
}

// Under the name `to` there is the old folder or the new one at any moment. Where the file system cannot exchange two
// names, there is none for a moment: a kill in it leaves both folders whole, under other names.
void put_in_place(const fs::path& partial, const fs::path& to) {
  if (::renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) return;
  if (errno == ENOSYS || errno == EINVAL) {
    const fs::path aside = partial.string() + kMovedAside;
    if (::rename(to.c_str(), aside.c_str()) == 0) {
      if (::rename(partial.c_str(), to.c_str()) == 0) return;
      const int error = errno;
      ::rename(aside.c_str(), to.c_str());
      fail_to_write(to, error);
    }
  }
  // What was there is gone, or never was.
  if (errno != ENOENT || ::rename(partial.c_str(), to.c_str()) != 0) fail_to_write(to, errno);
}

}  // namespace

at::ScalarType scalar_type_of(Dtype dtype) {
  return dtype == Dtype::kBF16 ? torch::kBFloat16 : dtype == Dtype::kF16 ? torch::kHalf : torch::kFloat;
}

void write_trained_checkpoint(const fs::path& from, const fs::path& to, const Parameters& parameters) {
  const fs::path partial = to.string() + ".partial-" + std::to_string(::getpid());
  std::error_code failure;
  remove_left_over(to, /*moved_aside=*/false);
  fs::create_directories(partial, failure);
  if (failure) fail_to_write(partial, failure.value());
  try {
    // What else is there is copied: tensors of a policy's modules may be called as parameters that are trained here.
    const Checkpoint weights = Checkpoint::open(from);
    for (const fs::directory_entry& entry : fs::directory_iterator(from)) {
      if (!entry.is_regular_file()) continue;
      const fs::path target = partial / entry.path().filename();
      if (weights.files().contains(target.filename().string()))
        write_weights(entry.path(), target, parameters);
      else
        fs::copy_file(entry.path(), target);
    }
    put_in_place(partial, to);
  } catch (const fs::filesystem_error& error) {
    fs::remove_all(partial, failure);
    fail_to_write(to, error.code().value());
  } catch (...) {
    fs::remove_all(partial, failure);
    throw;
  }
  for (const bool moved_aside : {false, true}) remove_left_over(to, moved_aside);
}

}  // namespace espalier
