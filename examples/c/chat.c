// SPDX-License-Identifier: Apache-2.0
// A conversation about one picture: every further argument is a question.
//   chat MODEL_FOLDER PICTURE QUESTION...
#include "espalier/espalier.h"

#include <stdio.h>

// One turn: the picture, if there is one, then the question.
static espalier_code ask(espalier_session* session, const espalier_image* picture, const char* question,
                         espalier_error** error) {
  espalier_prompt* turn = NULL;
  espalier_result* answer = NULL;
  espalier_code code = espalier_prompt_new(&turn, error);
  if (code == ESPALIER_OK && picture) code = espalier_prompt_add_image(turn, picture, error);
  if (code == ESPALIER_OK) code = espalier_prompt_add_text(turn, question, error);
  if (code == ESPALIER_OK) code = espalier_session_ask(session, turn, NULL, &answer, error);
  if (code == ESPALIER_OK) printf("%s\n  %s\n", question, espalier_result_text(answer, NULL));
  espalier_result_free(answer);
  espalier_prompt_free(turn);
  return code;
}

int main(int argc, char** argv) {
  if (argc < 4) return fprintf(stderr, "usage: chat MODEL_FOLDER PICTURE QUESTION...\n"), 2;
  espalier_engine* engine = NULL;
  espalier_image* picture = NULL;
  espalier_session* session = NULL;
  espalier_error* error = NULL;

  // Tokens that the first question did not need may come back for the next one.
  const espalier_generation_options generation = {.size = sizeof generation, .max_new_tokens = 16};
  const espalier_session_options options = {
      .size = sizeof options, .policy = "divprune:keep_ratio=1/2", .generation = &generation};
  espalier_code code = espalier_engine_load(argv[1], NULL, &engine, &error);
  if (code == ESPALIER_OK) code = espalier_image_read(argv[2], &picture, &error);
  if (code == ESPALIER_OK) code = espalier_session_new(engine, &options, &session, &error);
  for (int i = 3; code == ESPALIER_OK && i < argc; ++i) code = ask(session, i == 3 ? picture : NULL, argv[i], &error);

  if (code != ESPALIER_OK) fprintf(stderr, "chat: %s\n", espalier_error_message(error));
  espalier_error_free(error);
  espalier_session_free(session);
  espalier_image_free(picture);
  espalier_engine_free(engine);
  return (int)code;
}
