// SPDX-License-Identifier: Apache-2.0
// Sessions of espalier.h.
#include "espalier/session.h"

#include <variant>

#include "c_api/call.h"
#include "c_api/handles.h"
#include "c_api/request.h"

using namespace espalier;
using namespace espalier::c_api;

struct espalier_session {
  std::shared_ptr<const Engine> engine;  // first, so that it is destroyed last
  Session session;
};

namespace {

SessionOptions session_options_of(const espalier_session_options* given) {
  const espalier_session_options from = read_struct_or_defaults(given, "session_options");
  SessionOptions options;
  options.policy = text_or(from.policy, "none");
  if (from.custom) options.custom = from.custom->policy;
  options.generation = generation_of(from.generation);
  options.system = text_or(from.system, "");
  options.sticky = from.sticky != 0;
  return options;
}

std::vector<Part> turn_of(const espalier_prompt& prompt) {
  const Chat* chat = std::get_if<Chat>(&prompt.prompt);
  if (!chat || chat->messages.size() != 1 || chat->messages[0].role != "user")
    throw Error("turn: expected a prompt of one turn, the user's");
  return chat->messages[0].content;
}

}  // namespace

extern "C" {

espalier_code espalier_session_new(const espalier_engine* engine, const espalier_session_options* options,
                                   espalier_session** session, espalier_error** error) {
  return make_handle(session, "session", error, [&] {
    const std::shared_ptr<const Engine>& of = needed(engine, "engine").engine;
    return espalier_session{of, Session(*of, session_options_of(options))};
  });
}

espalier_code espalier_session_ask(espalier_session* session, const espalier_prompt* turn,
                                   const espalier_callbacks* callbacks, espalier_result** result,
                                   espalier_error** error) {
  return make_handle(result, "result", error, [&] {
    Session& asked = needed(session, "session").session;
    return espalier_result{
        std::make_shared<const Result>(asked.ask(turn_of(needed(turn, "turn")), callbacks_of(callbacks)))};
  });
}

void espalier_session_free(espalier_session* session) {
  delete session;
}

}  // extern "C"
