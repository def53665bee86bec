// SPDX-License-Identifier: Apache-2.0
// Four answers to one question, drawn by chance; the prompt is computed once. What the engine says comes to the
// program, and the policy may be one of a plugin.
//   samples MODEL_FOLDER PICTURE QUESTION [POLICY [PLUGIN]]
#include "espalier/espalier.h"

#include <stdio.h>

enum { kAnswers = 4 };

static void say(void* user, int32_t level, const char* message, size_t length) {
  (void)level, (void)length;
  fprintf(user, "engine: %s\n", message);
}

int main(int argc, char** argv) {
  if (argc < 4 || argc > 6)
    return fprintf(stderr, "usage: samples MODEL_FOLDER PICTURE QUESTION [POLICY [PLUGIN]]\n"), 2;
  const char* const spec = argc > 4 ? argv[4] : "divprune:keep_ratio=1/2";
  const char* const plugin = argc > 5 ? argv[5] : NULL;
  espalier_policy* policy = NULL;
  espalier_engine* engine = NULL;
  espalier_image* picture = NULL;
  espalier_prompt* prompt = NULL;
  espalier_scheduler* scheduler = NULL;
  espalier_ticket* tickets[kAnswers] = {NULL};
  espalier_error* error = NULL;

  const espalier_engine_options options = {
      .size = sizeof options, .user = stdout, .log_level = ESPALIER_LOG_VERBOSE, .on_log = say};
  espalier_code code = espalier_policy_make(spec, &plugin, plugin ? 1 : 0, &policy, &error);
  if (code == ESPALIER_OK) code = espalier_engine_load(argv[1], &options, &engine, &error);
  if (code == ESPALIER_OK) code = espalier_image_read(argv[2], &picture, &error);
  if (code == ESPALIER_OK) code = espalier_prompt_new(&prompt, &error);
  if (code == ESPALIER_OK) code = espalier_prompt_add_image(prompt, picture, &error);
  if (code == ESPALIER_OK) code = espalier_prompt_add_text(prompt, argv[3], &error);
  if (code == ESPALIER_OK) code = espalier_scheduler_new(engine, NULL, &scheduler, &error);

  const espalier_generation_options generation = {
      .size = sizeof generation, .max_new_tokens = 16, .sampling = ESPALIER_SAMPLING_ON, .seed = 1};
  const espalier_request request = {
      .size = sizeof request, .prompt = prompt, .generation = &generation, .custom = policy};
  if (code == ESPALIER_OK)
    code = espalier_scheduler_submit_samples(scheduler, &request, kAnswers, NULL, tickets, &error);
  for (int i = 0; code == ESPALIER_OK && i < kAnswers; ++i) {
    espalier_result* result = NULL;
    code = espalier_ticket_result(tickets[i], &result, &error);
    if (code == ESPALIER_OK) printf("answer %d: %s\n", i + 1, espalier_result_text(result, NULL));
    espalier_result_free(result);
  }

  if (code != ESPALIER_OK) fprintf(stderr, "samples: %s\n", espalier_error_message(error));
  espalier_error_free(error);
  for (int i = 0; i < kAnswers; ++i) espalier_ticket_free(tickets[i]);
  espalier_scheduler_free(scheduler);
  espalier_prompt_free(prompt);
  espalier_image_free(picture);
  espalier_engine_free(engine);
  espalier_policy_free(policy);
  return (int)code;
}
