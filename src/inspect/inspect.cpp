// SPDX-License-Identifier: Apache-2.0
#include "espalier/inspect.h"

#include "espalier/error.h"
#include "espalier/version.h"
#include "inspect/page.h"
#include "inspect/traced_run.h"
#include "runtime/engine_impl.h"
#include "runtime/prompt_packer.h"

namespace espalier {

std::optional<std::string> inspect(const Engine& engine, std::span<const Request> requests, const Callbacks& callbacks,
                                   const std::optional<std::string>& answer) {
  if (requests.empty()) throw Error("inspect: one request or more were expected, got 0");
  std::vector<InspectedRun> runs;
  for (const Request& request : requests) {
    runs.push_back(traced_run(engine, request, callbacks));
    if (runs.back().result.finish_reason == FinishReason::kCancelled) return std::nullopt;
  }
  const std::vector<ImagePart> images = pack_prompt(engine.impl().model, requests.front().prompt, 0).images;
  for (const ImagePart& part : images)
    if (!part.image) throw Error("inspect: a picture is known by its handle alone; the page shows its pixels");
  return inspect_page(
      {.model = engine.folder().filename().string(), .version = version(), .images = images, .answer = answer}, runs);
}

}  // namespace espalier
