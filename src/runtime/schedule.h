// SPDX-License-Identifier: Apache-2.0
// Decides which rows the next pass computes. Requests that came are encoded picture by picture and prefilled together,
// layer by layer; behind each such slice every running answer gets its next token. So nobody who runs waits longer than
// a layer for those who come, and whoever comes joins at the next slice. One thread at a time.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "kernels/support/chosen_kernels.h"
#include "runtime/decoder_pass.h"
#include "runtime/image_cache.h"
#include "runtime/pace.h"
#include "runtime/recorded_steps.h"
#include "runtime/request_run.h"

namespace espalier {

struct ScheduleOptions {
  ImageCache* images = nullptr;
  int64_t kv_bytes = 0;  // that all running requests may take together; 0: no limit
  int64_t prefix_cache_bytes = 0;
  // Where given, steps of decoding are recorded with it (recorded_steps.h).
  RecordedSteps::MakeGraph make_graph = {};
  // Called with each request that has ended, with `error` or `result`.
  std::function<void(std::unique_ptr<RequestRun>)> on_done;
};

class Schedule {
 public:
  Schedule(const LoadedModel& model, ScheduleOptions options);

  // Throws Error for a request that can never fit into `kv_bytes`. Requests start in the order of their admission.
  void check_fits(const RequestRun& run) const;
  void admit(std::unique_ptr<RequestRun> run);  // to its end at once, with an error, where there is no memory
  bool is_idle() const { return waiting_.empty() && gathered_.empty() && !prefill_ && decoding_.empty(); }
  // One slice for those that came and a token for each that runs.
  void step();
  // All that is left ends as cancelled.
  void cancel_all();
  // All that is left ends with this error; takes no memory. After what step() throws: requests catch what is theirs,
  // so that is memory which has ended between them.
  void give_up(const std::exception_ptr& error);

  const KvArena& arena() const { return arena_; }
  struct Load {
    int64_t waiting = 0, running = 0, kv_bytes_promised = 0;
    PrefixCache::Counts prefixes;
  };
  Load load() const;
  // From any thread.
  int64_t num_waiting() const { return num_waiting_; }
  int64_t num_running() const { return num_running_; }
  int64_t kv_bytes_promised() const { return kv_bytes_promised_; }

 private:
  using Runs = std::vector<std::unique_ptr<RequestRun>>;
  struct Prefill {
    Runs runs;
    DecoderPass pass;
  };

  void advance_newcomers();
  bool may_start(const RequestRun& run) const;
  bool waits_for_beginning(const RequestRun& run) const;
  void solve_first_waiting();
  void count_started(const RequestRun& run);
  void start(RequestRun& run);
  void keep_prefixes(const Runs& runs);
  void encode_slice();
  void start_prefill();
  void prefill_slice();
  void prefill_layer();
  void learn_pace(RequestRun& run);
  static void spread_samples(Runs& runs, at::Tensor& logits);
  void decode_step();
  at::Tensor decode(const std::vector<Sequence*>& sequences, const std::vector<int32_t>& ids);
  void decode_between_layers();
  void drop_cancelled(Runs& runs, DecoderPass* pass);
  void sample(const Runs& runs, const at::Tensor& logits);
  void drop_cancelled_waiting();
  template <typename Ask>
  void guarded(RequestRun& run, const Ask& ask);
  void end(std::unique_ptr<RequestRun> run);
  void end_finished(Runs& runs);
  void fail_all(Runs runs, const std::exception_ptr& error);
  template <typename Done>
  void show_progress(const Runs& runs, std::string_view stage, const Done& done);

  const LoadedModel& model_;
  ScheduleOptions options_;
  KvArena arena_;  // before the runs, whose rows are its
  PrefixCache prefixes_;
  std::unique_ptr<RecordedSteps> recorded_;
  std::deque<std::unique_ptr<RequestRun>> waiting_;
  Runs gathered_;  // encoded but for the last, which may be under way; to be prefilled together
  bool is_encoding_ = false;
  std::optional<Prefill> prefill_;
  Runs decoding_;
  // What other threads may look at.
  std::atomic<int64_t> num_waiting_ = 0, num_running_ = 0, kv_bytes_promised_ = 0;
  kernels::ChosenKernels::Seen seen_kernels_;  // since it was idle
  Pace pace_;
  const kernels::ChosenKernels* kernels_ = nullptr;  // the same and this step's, during a step
  std::chrono::steady_clock::time_point last_token_;
  std::chrono::steady_clock::duration token_time_{};
};

}  // namespace espalier
