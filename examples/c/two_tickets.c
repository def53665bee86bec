// SPDX-License-Identifier: Apache-2.0
// One question under two policies at the same time: two requests of one scheduler, which share its passes.
//   two_tickets MODEL_FOLDER PICTURE QUESTION
#include "espalier/espalier.h"

#include <stdio.h>

int main(int argc, char** argv) {
  if (argc != 4) return fprintf(stderr, "usage: two_tickets MODEL_FOLDER PICTURE QUESTION\n"), 2;
  static const char* const policies[] = {"divprune:keep_ratio=1/2", "catp:keep_ratio=2/9,k=3"};
  espalier_engine* engine = NULL;
  espalier_image* picture = NULL;
  espalier_prompt* prompt = NULL;
  espalier_scheduler* scheduler = NULL;
  espalier_ticket* tickets[2] = {NULL, NULL};
  espalier_error* error = NULL;

  const espalier_generation_options generation = {.size = sizeof generation, .max_new_tokens = 16};
  espalier_code code = espalier_engine_load(argv[1], NULL, &engine, &error);
  if (code == ESPALIER_OK) code = espalier_image_read(argv[2], &picture, &error);
  if (code == ESPALIER_OK) code = espalier_prompt_new(&prompt, &error);
  if (code == ESPALIER_OK) code = espalier_prompt_add_image(prompt, picture, &error);
  if (code == ESPALIER_OK) code = espalier_prompt_add_text(prompt, argv[3], &error);
  if (code == ESPALIER_OK) code = espalier_scheduler_new(engine, NULL, &scheduler, &error);
  for (int i = 0; code == ESPALIER_OK && i < 2; ++i) {
    const espalier_request request = {
        .size = sizeof request, .prompt = prompt, .policy = policies[i], .generation = &generation};
    code = espalier_scheduler_submit(scheduler, &request, NULL, &tickets[i], &error);
  }
  for (int i = 0; code == ESPALIER_OK && i < 2; ++i) {
    printf("%s: ", policies[i]);
    espalier_next next = ESPALIER_NEXT_TIMEOUT;
    while (code == ESPALIER_OK && next != ESPALIER_NEXT_END) {
      char* piece = NULL;
      code = espalier_ticket_next(tickets[i], 60 * 1000, &next, &piece, NULL, &error);
      if (piece) fputs(piece, stdout);
      espalier_text_free(piece);
    }
    espalier_result* result = NULL;
    if (code == ESPALIER_OK) code = espalier_ticket_result(tickets[i], &result, &error);  // an error of the request too
    size_t num_kept = 0;
    espalier_result_kept(result, &num_kept);
    if (code == ESPALIER_OK) printf("   (%s, %zu image tokens)\n", espalier_result_finish_reason(result), num_kept);
    espalier_result_free(result);
  }

  if (code != ESPALIER_OK) fprintf(stderr, "two_tickets: %s\n", espalier_error_message(error));
  espalier_error_free(error);
  for (int i = 0; i < 2; ++i) espalier_ticket_free(tickets[i]);
  espalier_scheduler_free(scheduler);
  espalier_prompt_free(prompt);
  espalier_image_free(picture);
  espalier_engine_free(engine);
  return (int)code;
}
