// SPDX-License-Identifier: Apache-2.0
// One request for an answer, from its submission to its last byte: the samples that were asked for, what is sent of
// them and when, and what ends them early.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "espalier/engine.h"
#include "espalier/scheduler.h"
#include "serve/answer_json.h"
#include "serve/asked.h"
#include "serve/http.h"
#include "serve/metrics.h"

namespace espalier::serve {

// What all generations share. Outlives them.
struct GenerationParts {
  const Engine& engine;
  Scheduler& scheduler;
  Metrics& metrics;
  std::string model_name;
  std::function<void(std::string_view)> log;
};

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  using Clock = std::chrono::steady_clock;
  Generation(const GenerationParts& parts, Asked asked, std::shared_ptr<Exchange> exchange, std::string path,
             Clock::time_point arrived);
  ~Generation();

  // Throws ApiError, and has answered nothing, for what the scheduler refuses. Afterwards it lives by itself.
  void start();

 private:
  struct Sample {
    std::vector<TokenLogprobs> untold;  // tokens whose text has not come yet
    Clock::time_point first, last;
    int64_t tokens = 0;
  };
  Callbacks callbacks();
  void on_token(int sample, const TokenLogprobs* logprobs);
  void on_text(int sample, std::string_view piece);
  void on_end();
  void send(std::string event);
  void leave(Exchange::Left why);
  void finish();
  void finish_well(const std::vector<const Result*>& results);
  void finish_badly(int status, const std::string& code, const std::string& message);

  const GenerationParts& parts_;
  const Asked asked_;
  const std::shared_ptr<Exchange> exchange_;
  const std::string path_;
  const Clock::time_point arrived_;
  AnswerForm form_;

  std::mutex mutex_;
  std::vector<Ticket> tickets_;
  std::vector<Sample> samples_;
  std::vector<std::string> early_;  // events from before the head went out
  bool is_submitted_ = false;       // all of them
  int num_ended_ = 0;
  std::optional<Exchange::Left> left_;
};

}  // namespace espalier::serve
