// SPDX-License-Identifier: Apache-2.0
#include "training/trained_checkpoint.h"

#include <torch/types.h>
#include <unistd.h>

#include <string>
#include <vector>

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

// Those of runs that were killed.
void remove_partials(const fs::path& of) {
  std::error_code failure;
  std::vector<fs::path> left;
  for (auto entry = fs::directory_iterator(of.parent_path(), failure); !failure && entry != fs::directory_iterator();
       entry.increment(failure))
    if (entry->path().filename().string().starts_with(of.filename().string() + ".partial-"))
      left.push_back(entry->path());
  for (const fs::path& partial : left) fs::remove_all(partial, failure);
}

}  // namespace

at::ScalarType scalar_type_of(Dtype dtype) {
  return dtype == Dtype::kBF16 ? torch::kBFloat16 : dtype == Dtype::kF16 ? torch::kHalf : torch::kFloat;
}

void write_trained_checkpoint(const fs::path& from, const fs::path& to, const Parameters& parameters) {
  const fs::path partial = to.string() + ".partial-" + std::to_string(::getpid());
  std::error_code failure;
  remove_partials(to);
  fs::create_directories(partial, failure);
  if (failure) throw Error(partial.string() + ": cannot make this folder: " + failure.message());
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
    fs::remove_all(to);
    fs::rename(partial, to);
  } catch (const fs::filesystem_error& error) {
    fs::remove_all(partial, failure);
    throw Error(to.string() + ": cannot be written: " + error.code().message());
  } catch (...) {
    fs::remove_all(partial, failure);
    throw;
  }
}

}  // namespace espalier
