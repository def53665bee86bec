// SPDX-License-Identifier: Apache-2.0
// What is asked and what comes back, as JSON text: for programs that hand it on, and for other languages. The forms are
// those of docs/formats.md. No libtorch type appears here.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "espalier/generation.h"
#include "espalier/model_facts.h"
#include "espalier/prompt.h"
#include "espalier/scheduler.h"
#include "espalier/trace.h"

namespace espalier {

// One line each. Bytes of an answer that are not UTF-8 (a stop string may cut a character in two) become U+FFFD.
std::string json_of(const Result& result);  // as `espalier generate --json` prints it
std::string json_of(const Stats& stats);
std::string json_of(const SchedulerLoad& load);
std::string json_of(const ModelFacts& facts);
std::string json_of(const PromptTrace& prompt);
std::string json_of(const PointTrace& point);
std::string json_of(std::span<const PointTrace> points);

// read_chat of a text: paths of pictures are relative to `folder`, and `name` opens the message of an Error.
Chat parse_chat(std::string_view messages_json, const std::filesystem::path& folder, const std::string& name);

}  // namespace espalier
