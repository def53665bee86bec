// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include <pybind11/stl.h>

#include "espalier/scheduler.h"
#include "policy.h"
#include "request.h"
#include "result.h"

namespace espalier::python {

namespace {

using namespace pybind11::literals;

constexpr Word<ComputeDtype> kDtypes[] = {
    {"f32", ComputeDtype::kFloat32}, {"bf16", ComputeDtype::kBFloat16}, {"f16", ComputeDtype::kFloat16}};
constexpr Word<DeviceKind> kDevices[] = {{"cpu", DeviceKind::kCpu}, {"cuda", DeviceKind::kCuda}};

// Its end waits for the thread that computes, which may be waiting for the interpreter's lock.
std::shared_ptr<LiveEngine> make_live(Engine engine) {
  return {new LiveEngine(std::move(engine)), [](const LiveEngine* live) {
            std::optional<Unlocked> unlocked;
            if (PyGILState_Check()) unlocked.emplace();
            delete live;
          }};
}

// `options` is the dataclass EngineOptions.
std::shared_ptr<LiveEngine> load(const std::string& folder, py::handle options) {
  EngineOptions given;
  if (!options.attr("dtype").is_none()) given.dtype = word_field(options, "dtype", kDtypes);
  given.int8_weights = field<bool>(options, "int8_weights");
  given.device = word_field(options, "device", kDevices);
  given.decode_graphs = field<bool>(options, "decode_graphs");
  given.threads = field<int>(options, "threads");
  if (const py::object file = options.attr("chat_template"); !file.is_none())
    given.chat_template = py::str(file).cast<std::string>();
  given.image_cache_bytes = field<int64_t>(options, "image_cache_bytes");
  given.prefix_cache_bytes = field<int64_t>(options, "prefix_cache_bytes");
  std::atomic<bool> is_cancelled = false;
  given.on_progress = [&is_cancelled,
                       asked = callbacks_of(py::dict("on_progress"_a = options.attr("on_progress"))).on_progress](
                          std::string_view stage, int64_t done, int64_t total) {
    if (is_cancelled) throw Error("loading: interrupted");
    if (asked) asked(stage, done, total);
  };
  std::shared_ptr<LiveEngine> engine;
  run_interruptibly([&] { engine = make_live(Engine::load(folder, given)); }, [&] { is_cancelled = true; });
  return engine;
}

py::tuple generate(LiveEngine& self, const std::vector<Request>& requests, const py::dict& functions) {
  std::vector<Result> results;
  call_engine(self, callbacks_of(functions),
              [&](const Callbacks& callbacks) { results = self.engine().generate(requests, callbacks); });
  return to_python<Result>(results);
}

// The handle with the engine that it must not outlive.
ImagePart look_at(const std::shared_ptr<LiveEngine>& self, const ImagePart& part) {
  struct Seen {
    std::shared_ptr<LiveEngine> engine;
    std::shared_ptr<const ImageHandle> handle;
  };
  const auto seen = std::make_shared<Seen>(Seen{self, {}});
  call_engine(*self, {}, [&](const Callbacks&) { seen->handle = self->engine().look_at(part.image); });
  ImagePart with_handle = part;
  with_handle.handle = std::shared_ptr<const ImageHandle>(seen, seen->handle.get());
  return with_handle;
}

py::object count_tokens(LiveEngine& self, const Prompt& prompt) {
  TokenCounts counts;
  call_engine(self, {}, [&](const Callbacks&) { counts = self.engine().count_tokens(prompt); });
  return py::module_::import("espalier.results")
      .attr("TokenCounts")("prompt_tokens"_a = counts.prompt_tokens,
                           "tokens_per_image"_a = py::tuple(py::cast(counts.tokens_per_image)),
                           "max_positions"_a = counts.max_positions);
}

}  // namespace

LiveEngine::Entry::Entry(LiveEngine& engine) : engine_(engine) {
  const std::scoped_lock lock(engine_.mutex_);
  if (engine_.is_closed_) throw Error("engine: it is closed");
  ++engine_.inside_;
}

LiveEngine::Entry::~Entry() {
  const std::scoped_lock lock(engine_.mutex_);
  --engine_.inside_;
  engine_.left_.notify_all();
}

void LiveEngine::close() {
  std::unique_lock lock(mutex_);
  is_closed_ = true;
  left_.wait(lock, [this] { return inside_ == 0; });
  // Behind an answer the thread that computes lets go what Python has seen (tensors, functions), and takes the lock for
  // it. A scheduler ends between two of its steps, so it has done so by then.
  const Scheduler last(engine_);
}

void call_engine(LiveEngine& engine, Callbacks callbacks, const std::function<void(const Callbacks&)>& work) {
  std::atomic<bool> is_interrupted = false;
  callbacks.should_cancel = [&, asked = callbacks.should_cancel] {
    return is_interrupted || engine.is_closed() || (asked && asked());
  };
  const LiveEngine::Entry inside(engine);
  run_interruptibly([&] { work(callbacks); }, [&] { is_interrupted = true; });
}

void add_engine(py::module_& module) {
  py::class_<Request>(module, "Request").def(py::init(&request_of), "prompt"_a, "options"_a);
  py::class_<Tokenizer>(module, "Tokenizer")
      .def("encode", &Tokenizer::encode, "text"_a, "add_special"_a = true)
      .def(
          "decode",
          [](const Tokenizer& self, const std::vector<int32_t>& ids, bool skip_special) {
            return text_of(self.decode(ids, skip_special));
          },
          "ids"_a, "skip_special"_a = false)
      .def("id_of", &Tokenizer::id_of, "token"_a)
      .def_property_readonly("size", &Tokenizer::size);
  py::class_<LiveEngine, std::shared_ptr<LiveEngine>>(module, "Engine")
      .def(py::init(&load), "folder"_a, "options"_a)
      .def("close", &LiveEngine::close, py::call_guard<Unlocked>())
      .def_property_readonly("is_closed", &LiveEngine::is_closed)
      .def_property_readonly("folder", [](const LiveEngine& self) { return self.engine().folder().string(); })
      .def_property_readonly("facts", [](const LiveEngine& self) { return to_python(self.engine().facts()); })
      .def_property_readonly(
          "tokenizer", [](const LiveEngine& self) -> const Tokenizer& { return self.engine().tokenizer(); },
          py::return_value_policy::reference_internal)
      .def("generate", &generate, "requests"_a, "callbacks"_a, py::call_guard<Inside>())
      .def("look_at", &look_at, "picture"_a, py::call_guard<Inside>())
      .def("count_tokens", &count_tokens, "prompt"_a, py::call_guard<Inside>());
}

}  // namespace espalier::python
