// SPDX-License-Identifier: Apache-2.0
// A question about a picture, the answer as it comes, and the statistics.
//   generate MODEL_FOLDER PICTURE QUESTION [POLICY]
#include "espalier/espalier.h"

#include <stdio.h>

static int32_t print(void* user, const char* piece, size_t length) {
  (void)user;
  fwrite(piece, 1, length, stdout);
  return fflush(stdout) == 0 ? ESPALIER_GO : ESPALIER_CANCEL;
}

int main(int argc, char** argv) {
  if (argc < 4) return fprintf(stderr, "usage: generate MODEL_FOLDER PICTURE QUESTION [POLICY]\n"), 2;
  espalier_engine* engine = NULL;
  espalier_image* picture = NULL;
  espalier_prompt* prompt = NULL;
  espalier_result* result = NULL;
  char* stats = NULL;
  espalier_error* error = NULL;

  const espalier_generation_options generation = {.size = sizeof generation, .max_new_tokens = 16};
  const espalier_callbacks callbacks = {.size = sizeof callbacks, .on_text = print};
  espalier_request request = {.size = sizeof request, .generation = &generation};
  request.policy = argc > 4 ? argv[4] : "fastv:keep_ratio=1/2";

  if (espalier_engine_load(argv[1], NULL, &engine, &error) != ESPALIER_OK) goto end;
  if (espalier_image_read(argv[2], &picture, &error) != ESPALIER_OK) goto end;
  if (espalier_prompt_new(&prompt, &error) != ESPALIER_OK) goto end;
  if (espalier_prompt_add_image(prompt, picture, &error) != ESPALIER_OK) goto end;
  if (espalier_prompt_add_text(prompt, argv[3], &error) != ESPALIER_OK) goto end;
  request.prompt = prompt;
  if (espalier_engine_generate(engine, &request, &callbacks, &result, &error) != ESPALIER_OK) goto end;
  if (espalier_result_stats_json(result, &stats, &error) != ESPALIER_OK) goto end;

  size_t num_kept = 0;
  espalier_result_kept(result, &num_kept);
  printf("\n%zu image tokens reached the last layer\n%s\n", num_kept, stats);

end:
  if (error) fprintf(stderr, "generate: %s\n", espalier_error_message(error));
  const int status = (int)espalier_error_code(error);  // 0, or 2 for bad input, as the command line ends
  espalier_error_free(error);
  espalier_text_free(stats);
  espalier_result_free(result);
  espalier_prompt_free(prompt);
  espalier_image_free(picture);
  espalier_engine_free(engine);
  return status;
}
