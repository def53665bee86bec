// SPDX-License-Identifier: Apache-2.0
#include "questions/answer_questions.h"

#include <chrono>
#include <deque>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>

#include "espalier/error.h"
#include "espalier/image.h"
#include "espalier/pruning.h"
#include "espalier/scheduler.h"

namespace espalier {

namespace {

// A question of some files comes twice under one id, so its text counts too.
using Key = std::tuple<std::string, std::string, std::string>;  // question_id, prompt, policy

std::map<Key, int64_t> count_answers(const AnswerFile& file, const std::string& model_id) {
  std::map<Key, int64_t> counts;
  for (const GivenAnswer& a : file.all()) {
    if (a.model_id != model_id)
      throw Error(file.path().string() + ": it holds answers of the model " + a.model_id + ", this one is " + model_id +
                  "; name another file");
    ++counts[{a.question_id, a.prompt, a.policy}];
  }
  return counts;
}

Request request_of(const Question& question, const Asking& asking, const std::shared_ptr<const PruningPolicy>& policy) {
  Message turn{.role = "user"};
  for (const std::filesystem::path& file : question.images) {
    ImagePart part;
    part.image = std::make_shared<const Image>(read_image(file));
    turn.content.emplace_back(std::move(part));
  }
  turn.content.emplace_back(TextPart{question.text});
  Request request;
  request.prompt = Chat{{std::move(turn)}};
  request.policy = policy->spec();
  request.custom = policy;
  request.options = asking.generation;
  return request;
}

GivenAnswer answer_of(const Question& question, const std::string& policy, const std::string& model_id,
                      const Result& result) {
  const Stats& stats = result.stats;
  GivenAnswer answer{.question_id = question.id,
                     .prompt = question.text,
                     .text = result.text,
                     .model_id = model_id,
                     .policy = policy,
                     .prompt_tokens = stats.prompt_tokens,
                     .image_tokens = std::accumulate(stats.image_tokens.begin(), stats.image_tokens.end(), int64_t{0}),
                     .new_tokens = stats.new_tokens,
                     .finish_reason = std::string(name_of(result.finish_reason))};
  for (const std::vector<int64_t>& layer : stats.image_tokens_per_layer)
    answer.image_tokens_mean += static_cast<double>(std::accumulate(layer.begin(), layer.end(), int64_t{0})) /
                                static_cast<double>(stats.image_tokens_per_layer.size());
  return answer;
}

class Asker {
 public:
  Asker(const Engine& engine, const Asking& asking, AnswerFile& file, const AskingProgress& progress)
      : asking_(asking),
        file_(file),
        progress_(progress),
        scheduler_(engine, {.kv_bytes = asking.kv_bytes}),
        answered_before_(count_answers(file, asking.model_id)) {
    result_.total = std::ssize(asking.questions) * std::ssize(asking.policies);
  }

  AskingResult run() {
    for (const Question& question : asking_.questions)
      for (const auto& policy : asking_.policies) {
        if (const auto found = answered_before_.find({question.id, question.text, policy->spec()});
            found != answered_before_.end() && found->second > 0) {
          --found->second;
          ++result_.found;
          continue;
        }
        if (!make_room()) return cancelled();
        submit(question, policy);
      }
    while (!running_.empty())
      if (!write_first()) return cancelled();
    file_.finish();
    return result_;
  }

 private:
  struct Running {
    const Question* question;
    std::string policy;
    Ticket ticket;
  };

  void submit(const Question& question, const std::shared_ptr<const PruningPolicy>& policy) {
    try {
      running_.push_back({&question, policy->spec(), scheduler_.submit(request_of(question, asking_, policy))});
    } catch (const Error& error) {
      write_all();
      throw Error(question.where + ": " + error.what());
    }
  }

  bool make_room() {
    show();
    while (running_.size() >= asking_.at_once)
      if (!write_first()) return false;
    return !is_cancelled();
  }

  // Waits for the first that was asked. False when cancelled before it ended.
  bool write_first() {
    Running& first = running_.front();
    std::string piece;
    for (auto next = Ticket::Next::kText; next != Ticket::Next::kEnd;) {
      next = first.ticket.next(piece, std::chrono::milliseconds(50));
      if (next == Ticket::Next::kTimeout && is_cancelled()) return false;
    }
    try {
      file_.add(answer_of(*first.question, first.policy, asking_.model_id, first.ticket.result()));
    } catch (const Error& error) {
      throw Error(first.question->where + ": " + error.what());
    }
    running_.pop_front();
    ++result_.answered;
    show();
    return true;
  }

  void write_all() {
    while (!running_.empty() && write_first()) {
    }
  }

  // What has ended at the front stays.
  AskingResult cancelled() {
    while (!running_.empty() && running_.front().ticket.is_done() && write_first()) {
    }
    for (Running& running : running_) running.ticket.cancel();
    file_.finish();
    result_.is_complete = false;
    return result_;
  }

  bool is_cancelled() const { return progress_.should_cancel && progress_.should_cancel(); }
  void show() const {
    if (progress_.show) progress_.show(result_.found + result_.answered, result_.total);
  }

  const Asking& asking_;
  AnswerFile& file_;
  const AskingProgress& progress_;
  Scheduler scheduler_;
  std::map<Key, int64_t> answered_before_;
  std::deque<Running> running_;  // in the order of the questions
  AskingResult result_;
};

}  // namespace

AskingResult answer_questions(const Engine& engine, const Asking& asking, AnswerFile& file,
                              const AskingProgress& progress) {
  return Asker(engine, asking, file, progress).run();
}

}  // namespace espalier
