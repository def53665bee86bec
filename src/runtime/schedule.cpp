// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <sys/resource.h>

#include <algorithm>
#include <iterator>
#include <new>
#include <string>

#include "espalier/error.h"
#include "layout/prompt_trace.h"
#include "runtime/stopwatch.h"
#include "runtime/time_share.h"

namespace espalier {

namespace {

// Prompts that are prefilled together: reading the weights once for all of them pays, but those who run wait for a
// layer of all.
constexpr int64_t kTokensTogether = 32768;

int64_t peak_memory(at::Device device) {
  if (!device.is_cpu()) {
    const auto stats = at::accelerator::getDeviceStats(device.has_index() ? device.index() : 0);
    return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * int64_t{1024};
}

std::vector<Sequence*> sequences_of(const std::vector<std::unique_ptr<RequestRun>>& runs) {
  std::vector<Sequence*> sequences;
  for (const auto& run : runs) sequences.push_back(&run->sequence);
  return sequences;
}

}  // namespace

Schedule::Schedule(const LoadedModel& model, ScheduleOptions options)
    : model_(model),
      options_(std::move(options)),
      arena_(model.config.decoder, model.dtype, model.device),
      prefixes_(options_.prefix_cache_bytes),
      recorded_(options_.make_graph ? std::make_unique<RecordedSteps>(model, arena_, options_.make_graph) : nullptr),
      last_token_(std::chrono::steady_clock::now()) {}

void Schedule::check_fits(const RequestRun& run) const {
  if (const int64_t wanted = run.kv_bytes_of_all(); options_.kv_bytes > 0 && wanted > options_.kv_bytes)
    throw Error("request: keys and values of its " + std::to_string(run.sequence.prompt.layout->num_tokens) +
                " tokens and " + std::to_string(run.request.options.max_new_tokens) + " new ones take up to " +
                std::to_string(wanted) + " bytes; there are " + std::to_string(options_.kv_bytes));
}

void Schedule::admit(std::unique_ptr<RequestRun> run) {
  num_waiting_ += static_cast<int64_t>(run->num_answers());
  try {
    waiting_.push_back(std::move(run));
  } catch (const std::bad_alloc&) {  // and nothing was moved
    run->error = std::current_exception();
    count_started(*run);
    end(std::move(run));
  }
}

Schedule::Load Schedule::load() const {
  return {.waiting = num_waiting_,
          .running = num_running_,
          .kv_bytes_promised = kv_bytes_promised_,
          .prefixes = prefixes_.counts()};
}

void Schedule::step() {
  const c10::InferenceMode no_gradients;
  if (is_idle()) return;
  if (seen_kernels_.empty() && !model_.device.is_cpu())
    at::accelerator::resetPeakStats(model_.device.has_index() ? model_.device.index() : 0);
  const kernels::ChosenKernels chosen(std::exchange(seen_kernels_, {}));
  kernels_ = &chosen;
  drop_cancelled_waiting();
  advance_newcomers();
  decode_step();
  kernels_ = nullptr;
  if (!is_idle()) seen_kernels_ = chosen.seen();
}

void Schedule::cancel_all() {
  for (auto& run : waiting_) run->call->cancel();
  for (Runs* runs : {&gathered_, &decoding_})
    for (auto& run : *runs) run->call->cancel();
  if (prefill_)
    for (auto& run : prefill_->runs) run->call->cancel();
  while (!is_idle()) step();
}

void Schedule::give_up(const std::exception_ptr& error) {
  kernels_ = nullptr;
  is_encoding_ = false;
  while (!waiting_.empty()) {
    std::unique_ptr<RequestRun> run = std::move(waiting_.front());
    waiting_.pop_front();
    if (!run) continue;
    count_started(*run);
    run->error = error;
    end(std::move(run));
  }
  Runs runs;
  if (prefill_) runs = std::move(prefill_->runs);
  prefill_.reset();
  fail_all(std::move(runs), error);
  fail_all(std::exchange(gathered_, {}), error);
  fail_all(std::exchange(decoding_, {}), error);
}

// ---- ends ----

// What a caller's own function throws is its own request's affair.
template <typename Ask>
void Schedule::guarded(RequestRun& run, const Ask& ask) {
  try {
    ask();
  } catch (...) {
    run.error = std::current_exception();
  }
}

void Schedule::end(std::unique_ptr<RequestRun> run) {
  for (auto& other : std::exchange(run->samples, {})) {
    other->error = run->error;
    if (!run->error) other->answer.cancel();
    end(std::move(other));
  }
  if (!run->error)
    guarded(*run, [&] {
      run->result = run->take_result();
      run->result->stats.peak_memory_bytes = peak_memory(model_.device);
      run->result->stats.kernels = kernels_ ? kernels_->list() : std::vector<std::pair<std::string, std::string>>();
    });
  run->sequence.kv = SequenceKv(0);
  run->sequence.traces.clear();
  run->sequence.stream = {};
  kv_bytes_promised_ -= run->kv_bytes;
  --num_running_;
  options_.on_done(std::move(run));
}

void Schedule::end_finished(Runs& runs) {
  for (auto& run : runs)
    if (run->error || run->answer.is_finished()) end(std::move(run));
  std::erase(runs, nullptr);
}

void Schedule::fail_all(Runs runs, const std::exception_ptr& error) {
  for (auto& run : runs) {
    if (!run) continue;  // it has ended
    run->error = error;
    end(std::move(run));
  }
}

// Asks each call once. Who leaves keeps what answer there is.
void Schedule::drop_cancelled(Runs& runs, DecoderPass* pass) {
  std::vector<const Call*> asked;
  for (const auto& run : runs)
    if (std::ranges::find(asked, run->call.get()) == asked.end()) {
      guarded(*run, [&] { run->call->should_cancel(); });
      asked.push_back(run->call.get());
    }
  for (auto& run : runs) {
    if (!run->error && !run->is_cancelled()) continue;
    if (pass) pass->leave(&run->sequence);
    run->answer.cancel();
    end(std::move(run));
  }
  std::erase(runs, nullptr);
}

// Once for each call, on behalf of its first request.
template <typename Done>
void Schedule::show_progress(const Runs& runs, std::string_view stage, const Done& done) {
  std::vector<const Call*> shown;
  for (const auto& run : runs) {
    const Call* call = run->call.get();
    if (!call->callbacks.on_progress || std::ranges::find(shown, call) != shown.end()) continue;
    shown.push_back(call);
    const auto [now, total] = done(*run);
    guarded(*run, [&, n = now, t = total] { call->callbacks.on_progress(stage, n, t); });
  }
}

// ---- those that came ----

// Those that wait for others are not asked, only told.
void Schedule::drop_cancelled_waiting() {
  for (auto& run : waiting_) {
    if (!run->is_cancelled()) continue;
    run->answer.cancel();
    count_started(*run);  // and at once at its end
    end(std::move(run));
  }
  std::erase(waiting_, nullptr);
  const auto under_way = gathered_.end() - (is_encoding_ ? 1 : 0);
  for (auto run = gathered_.begin(); run != under_way; ++run) {
    if (!(*run)->is_cancelled()) continue;
    (*run)->answer.cancel();
    end(std::move(*run));
  }
  std::erase(gathered_, nullptr);
}

void Schedule::advance_newcomers() {
  if (prefill_) return prefill_slice();
  if (is_encoding_) return encode_slice();
  if (!waiting_.empty() && may_start(*waiting_.front())) {
    guarded(*waiting_.front(), [&] { solve_first_waiting(); });
    gathered_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    RequestRun& run = *gathered_.back();
    count_started(run);
    is_encoding_ = true;
    if (!run.error) guarded(run, [&] { start(run); });
    return encode_slice();
  }
  if (!gathered_.empty()) start_prefill();
}

// How much may stay where that depends on the time is decided when the request's turn has come: what it has waited is
// gone, what is left it shares with those behind it.
void Schedule::solve_first_waiting() {
  RequestRun& first = *waiting_.front();
  if (!first.deadline) return;
  const auto now = std::chrono::steady_clock::now();
  std::vector<Waiting> queue;
  for (const auto& run : waiting_) {
    Waiting& waiting = queue.emplace_back();
    if (!run->deadline) continue;
    waiting.left_ms = std::chrono::duration<double, std::milli>(*run->deadline - now).count();
    waiting.least_ms = pace_.now() * run->solved->least_by_costs_ms;
  }
  // Behind each layer those that run take a step of theirs.
  const double for_others = decoding_.empty() ? 0
                                              : model_.config.decoder.num_layers *
                                                    std::chrono::duration<double, std::milli>(token_time_).count();
  first.solve_amount(time_share(queue) - for_others, pace_.now());
}

void Schedule::count_started(const RequestRun& run) {
  const auto answers = static_cast<int64_t>(run.num_answers());
  num_waiting_ -= answers;
  num_running_ += answers;
  kv_bytes_promised_ += run.kv_bytes_of_all();
}

// From here on it runs: behind what is known of its beginning.
void Schedule::start(RequestRun& run) {
  Sequence& sequence = run.sequence;
  if (!run.samples.empty()) sequence.room = 0;  // what follows the shared rows are each answer's own
  const int depth = run.uses_prefixes ? boundary_depth(sequence.walk, model_.config.decoder.num_layers) : 0;
  if (depth > 0) {
    if (PrefixPtr found = prefixes_.find(sequence, std::span(&run.held, 1)))
      sequence.start_behind(model_, std::move(found));
    sequence.prefix.depth = depth;
    for (const PrefixEnd& end : prefix_ends(*sequence.prompt.layout))
      if (!sequence.prefix.found || end.token > sequence.prefix.found->end) sequence.prefix.ends.push_back(end);
  }
  if (!run.request.trace) sequence.walk.forget_answer();
  run.encoding.emplace(model_, sequence,
                       EncodeInputs{.cache = options_.images,
                                    .pixel_values = run.pixel_values,
                                    .between_layers = [this] { decode_between_layers(); }});
  if (run.call->callbacks.on_prompt) run.call->callbacks.on_prompt(run.index, trace_of(*sequence.prompt.layout));
}

void Schedule::keep_prefixes(const Runs& runs) {
  for (const auto& run : runs) prefixes_.keep(run->sequence.prefix.made);
}

bool Schedule::may_start(const RequestRun& run) const {
  int64_t tokens = run.sequence.prompt.layout->num_tokens;
  for (const auto& other : gathered_) tokens += other->sequence.prompt.layout->num_tokens;
  const bool has_room = options_.kv_bytes == 0 || kv_bytes_promised_ + run.kv_bytes_of_all() <= options_.kv_bytes;
  // Who is to be in time waits for nobody that came later.
  const auto has_deadline = [](const auto& other) { return other->deadline.has_value(); };
  const bool is_alone = run.deadline || std::ranges::any_of(gathered_, has_deadline);
  if (is_alone && !gathered_.empty()) return false;
  return has_room && (gathered_.empty() || tokens <= kTokensTogether) && !waits_for_beginning(run);
}

// Another request that begins alike is about to make its beginning known: where that is most of a request, what both
// share is computed once.
bool Schedule::waits_for_beginning(const RequestRun& run) const {
  if (!run.uses_prefixes) return false;
  const PromptLayout& prompt = *run.sequence.prompt.layout;
  const std::vector<PrefixEnd> ends = prefix_ends(prompt);
  return std::ranges::any_of(gathered_, [&](const auto& other) {
    if (other->sequence.custom != run.sequence.custom) return false;
    return std::ranges::any_of(other->sequence.prefix.ends, [&](const PrefixEnd& end) {
      return 2 * end.token >= prompt.num_tokens && std::ranges::count(ends, end.token, &PrefixEnd::token) > 0 &&
             key_of_prefix(other->sequence, end.token) == key_of_prefix(run.sequence, end.token);
    });
  });
}

void Schedule::encode_slice() {
  RequestRun& run = *gathered_.back();
  try {
    if (run.error) std::rethrow_exception(run.error);  // of its start
    if (run.should_cancel()) throw Cancelled();
    const Callbacks& callbacks = run.call->callbacks;
    is_encoding_ = run.encoding->step();
    if (const auto pictures = std::ssize(run.sequence.prompt.images); pictures > 0 && callbacks.on_progress)
      callbacks.on_progress("encode", run.encoding->pictures_done(), pictures);
    return;
  } catch (const Cancelled&) {
    run.answer.cancel();
  } catch (...) {
    run.error = std::current_exception();
  }
  is_encoding_ = false;
  std::unique_ptr<RequestRun> left = std::move(gathered_.back());
  gathered_.pop_back();
  end(std::move(left));
}

void Schedule::start_prefill() {
  drop_cancelled(gathered_, nullptr);
  if (gathered_.empty()) return;
  Runs runs = std::exchange(gathered_, {});
  try {
    prefill_.emplace(Prefill{{}, DecoderPass(model_, arena_, sequences_of(runs))});
  } catch (...) {
    return fail_all(std::move(runs), std::current_exception());
  }
  prefill_->runs = std::move(runs);
  prefill_slice();
}

void Schedule::prefill_slice() {
  try {
    prefill_layer();
  } catch (...) {
    Runs runs = std::move(prefill_->runs);
    prefill_.reset();
    fail_all(std::move(runs), std::current_exception());
  }
}

void Schedule::prefill_layer() {
  Runs& runs = prefill_->runs;
  DecoderPass& pass = prefill_->pass;
  drop_cancelled(runs, &pass);
  if (runs.empty()) return prefill_.reset();
  pass.run_to(pass.depth() + 1);
  for (auto& [sequence, error] : pass.take_failures()) {
    const auto failed = std::ranges::find_if(runs, [&, s = sequence](const auto& run) { return &run->sequence == s; });
    (*failed)->error = std::move(error);
    end(std::move(*failed));
    runs.erase(failed);
  }
  if (runs.empty()) return prefill_.reset();
  const int layers = model_.config.decoder.num_layers;
  show_progress(runs, "prefill", [&](const RequestRun&) { return std::pair(pass.depth(), layers); });
  if (pass.depth() < layers) return;
  at::Tensor logits = pass.finish();
  for (const auto& run : runs) {
    run->encoding->record_times();
    if (runs.size() == 1) learn_pace(*run);
    run->encoding.reset();
  }
  keep_prefixes(runs);
  spread_samples(runs, logits);
  decoding_.reserve(decoding_.size() + runs.size());  // so that nothing can be lost below for want of memory
  Runs done = std::move(runs);
  prefill_.reset();
  try {
    sample(done, logits);
  } catch (...) {
    return fail_all(std::move(done), std::current_exception());
  }
  end_finished(done);
  std::ranges::move(done, std::back_inserter(decoding_));
  last_token_ = std::chrono::steady_clock::now();
}

// A request with a time, of which nothing was known before, shows how fast the machine is now.
void Schedule::learn_pace(RequestRun& run) {
  if (!run.deadline || run.sequence.prefix.found || run.encoding->pictures_found() > 0) return;
  pace_.saw(run.solved->by_costs_ms, run.sequence.stats.first_token_ms());
}

// From here on each answer to a prompt runs for itself. Nothing is moved before all memory is there.
void Schedule::spread_samples(Runs& runs, at::Tensor& logits) {
  Runs all;
  std::vector<int64_t> rows;
  for (size_t i = 0; i < runs.size(); ++i) {
    rows.resize(rows.size() + runs[i]->num_answers(), static_cast<int64_t>(i));
    if (runs[i]->samples.empty()) continue;
    for (auto& other : runs[i]->samples) {
      other->sequence.go_on_from(runs[i]->sequence);
      other->solved = runs[i]->solved;
    }
  }
  if (rows.size() == runs.size()) return;
  logits = logits.index_select(0, at::tensor(rows, at::kLong).to(logits.device()));
  all.reserve(rows.size());
  for (auto& run : runs) {
    Runs samples = std::exchange(run->samples, {});
    all.push_back(std::move(run));
    std::ranges::move(samples, std::back_inserter(all));
  }
  runs = std::move(all);
}

// ---- those that run ----

// One sampled token for each run; row i of `logits` is run i's.
void Schedule::sample(const Runs& runs, const at::Tensor& logits) {
  const at::Tensor rows = logits.to(at::kFloat).cpu().contiguous();
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i]->error || runs[i]->answer.is_finished()) continue;  // its policy failed; or it asked for no tokens
    const at::Tensor row = rows.select(0, static_cast<int64_t>(i));
    guarded(*runs[i], [&] { runs[i]->sample({row.data_ptr<float>(), static_cast<size_t>(row.numel())}); });
  }
}

// Between two layers of the tower, which are shorter than a step of decoding: a step as soon as two of them would have
// fitted into the time since the last.
void Schedule::decode_between_layers() {
  if (gathered_.back()->should_cancel()) throw Cancelled();
  if (decoding_.empty()) return;
  if (std::chrono::steady_clock::now() - last_token_ >= 2 * token_time_) decode_step();
}

at::Tensor Schedule::decode(const std::vector<Sequence*>& sequences, const std::vector<int32_t>& ids) {
  if (recorded_ && RecordedSteps::can_step(sequences)) return recorded_->step(sequences, ids);
  if (!model_.device.is_cpu()) kernels::note_kernel("decode", "launches");
  DecoderPass pass(model_, arena_, sequences, ids);
  pass.run_to(model_.config.decoder.num_layers);
  at::Tensor logits = pass.finish();
  for (DecoderPass::Failure& failure : pass.take_failures())
    for (auto& run : decoding_)
      if (&run->sequence == failure.sequence) run->error = failure.error;
  return logits;
}

void Schedule::decode_step() {
  drop_cancelled(decoding_, nullptr);
  if (decoding_.empty()) return;
  try {
    const auto began = std::chrono::steady_clock::now();
    std::vector<int32_t> ids;
    for (const auto& run : decoding_) ids.push_back(run->answer.ids().back());
    sample(decoding_, decode(sequences_of(decoding_), ids));
    last_token_ = std::chrono::steady_clock::now();
    token_time_ = last_token_ - began;
    for (const auto& run : decoding_)
      run->sequence.stats.decoded(std::chrono::duration<double, std::milli>(token_time_).count());
    show_progress(decoding_, "decode", [](const RequestRun& run) {
      return std::pair(std::ssize(run.answer.ids()), run.request.options.max_new_tokens);
    });
    end_finished(decoding_);
  } catch (...) {
    fail_all(std::exchange(decoding_, {}), std::current_exception());
  }
}

}  // namespace espalier
