// SPDX-License-Identifier: Apache-2.0
// Calls every function of espalier.h from C, with right and with wrong arguments. Ends with 1 after the first line that
// says what is not as it should be and all others.
//   every_function SOURCE_FOLDER VERSION GREEDY_TOKENS PROMPT_TOKENS PLUGIN
// The tokens are those of Transformers, as lists "1,2,3": its answer to the case text_only of tests/golden/llava15, and
// its ids of the prompt of the case single. The plugin is examples/keep_centre_policy.cpp.
#include "espalier/espalier.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What a program has that was compiled with the first edition. Fields may only be added behind these.
_Static_assert(offsetof(espalier_engine_options, user) == 10 * 8, "espalier_engine_options");
_Static_assert(offsetof(espalier_generation_options, top_logprobs) == 12 * 8, "espalier_generation_options");
_Static_assert(offsetof(espalier_request, trace) == 5 * 8, "espalier_request");
_Static_assert(offsetof(espalier_callbacks, on_end) == 8 * 8, "espalier_callbacks");
_Static_assert(offsetof(espalier_scheduler_options, no_own_thread) == 4 * 8, "espalier_scheduler_options");
_Static_assert(offsetof(espalier_session_options, sticky) == 4 * 8, "espalier_session_options");

static int failures = 0;
static espalier_error* error = NULL;

static void check(int holds, const char* what, int line) {
  if (holds) return;
  ++failures;
  fprintf(stderr, "every_function.c:%d: %s; the last error: \"%s\"\n", line, what, espalier_error_message(error));
}
#define CHECK(condition) check((condition) ? 1 : 0, #condition, __LINE__)

// A call that must succeed, and one that must be refused with these words in its message.
static void check_ok(espalier_code code, const char* what, int line) {
  check(code == ESPALIER_OK && !error && espalier_error_code(error) == ESPALIER_OK, what, line);
  if (code != ESPALIER_OK) exit(1);
}
static void check_refused(espalier_code code, const char* words, const char* what, int line) {
  check(code == ESPALIER_BAD_INPUT && espalier_error_code(error) == ESPALIER_BAD_INPUT &&
            strstr(espalier_error_message(error), words) && !strchr(espalier_error_message(error), '\n'),
        what, line);
  espalier_error_free(error);
  error = NULL;
}
#define OK(call) check_ok((call), #call, __LINE__)
#define REFUSED(call, words) check_refused((call), (words), #call " refused with " words, __LINE__)

static char path_buffer[4096];
static const char* source_folder;
static const char* path(const char* name) {
  snprintf(path_buffer, sizeof path_buffer, "%s/%s", source_folder, name);
  return path_buffer;
}

static int is_list(const int32_t* ids, size_t count, const char* list) {
  for (size_t i = 0; i < count; ++i) {
    char* end = NULL;
    if (strtol(list, &end, 10) != ids[i] || end == list) return 0;
    list = *end == ',' ? end + 1 : end;
  }
  return count > 0 && *list == '\0';
}

// ---- what callbacks saw ----

typedef struct seen {
  char text[4096];
  size_t length, num_tokens, num_progress, num_prompts, num_points, num_ends;
  int32_t ids[64];
  int32_t answer;  // of on_text
  int32_t cancel;  // of should_cancel
} seen;

static int32_t on_text(void* user, const char* piece, size_t length) {
  seen* s = user;
  CHECK(piece[length] == '\0');
  if (s->length + length < sizeof s->text) memcpy(s->text + s->length, piece, length);
  s->length += length;
  return s->answer;
}
static void on_token(void* user, int32_t id) {
  seen* s = user;
  if (s->num_tokens < 64) s->ids[s->num_tokens] = id;
  ++s->num_tokens;
}
static int32_t should_cancel(void* user) {
  return ((seen*)user)->cancel;
}
static void on_progress(void* user, const char* stage, int64_t done, int64_t total) {
  CHECK(stage[0] != '\0' && done >= 0 && done <= total);
  ++((seen*)user)->num_progress;
}
static void on_prompt(void* user, const char* json, size_t length) {
  CHECK(length == strlen(json) && strstr(json, "\"tokens\":[{\"kind\":\"text\""));
  ++((seen*)user)->num_prompts;
}
static void on_point(void* user, const char* json, size_t length) {
  CHECK(length == strlen(json) && strstr(json, "\"site\":\"projector_output\"") && strstr(json, "\"dropped\":["));
  ++((seen*)user)->num_points;
}
static void on_end(void* user) {
  ++((seen*)user)->num_ends;
}
static espalier_callbacks watch(seen* s) {
  const espalier_callbacks callbacks = {.size = sizeof callbacks,
                                        .user = s,
                                        .on_text = on_text,
                                        .on_token = on_token,
                                        .should_cancel = should_cancel,
                                        .on_progress = on_progress,
                                        .on_prompt = on_prompt,
                                        .on_point = on_point,
                                        .on_end = on_end};
  return callbacks;
}

// ---- the parts of the header ----

static void test_nothing(void) {
  CHECK(espalier_error_code(NULL) == ESPALIER_OK);
  CHECK(strcmp(espalier_error_message(NULL), "") == 0);
  espalier_error_free(NULL);
  espalier_text_free(NULL);
  espalier_engine_free(NULL);
  espalier_image_free(NULL);
  espalier_prompt_free(NULL);
  espalier_result_free(NULL);
  espalier_scheduler_free(NULL);
  espalier_ticket_free(NULL);
  espalier_session_free(NULL);
  espalier_policy_free(NULL);
  CHECK(!espalier_policy_spec(NULL));
  espalier_ticket_cancel(NULL);
  CHECK(espalier_ticket_is_done(NULL) == 0);
  CHECK(espalier_image_width(NULL) == 0 && espalier_image_height(NULL) == 0);
  size_t n = 7;
  CHECK(!espalier_result_text(NULL, &n) && n == 0);
  CHECK(!espalier_result_finish_reason(NULL));
  CHECK(!espalier_result_tokens(NULL, NULL));
  CHECK(!espalier_result_prompt_tokens(NULL, &n) && n == 0);
  CHECK(!espalier_result_kept(NULL, &n) && n == 0);
  // Without an error to fill in, the code says it.
  CHECK(espalier_policy_check("nothing_such", NULL) == ESPALIER_BAD_INPUT);
}

// What an engine said, by level.
static void on_log(void* user, int32_t level, const char* message, size_t length) {
  CHECK(length == strlen(message) && length > 0 && !strchr(message, '\n'));
  CHECK(level == ESPALIER_LOG_WARNING || level == ESPALIER_LOG_VERBOSE);
  ++((size_t*)user)[level];
}

static void test_log(espalier_engine_options options) {
  size_t said[2] = {0, 0};
  espalier_engine* engine = NULL;
  options.on_log = on_log;
  options.user = said;
  options.log_level = 3;
  REFUSED(espalier_engine_load(path("tests/golden/llava15"), &options, &engine, &error), "engine_options.log_level");
  options.log_level = ESPALIER_LOG_VERBOSE;
  OK(espalier_engine_load(path("tests/golden/llava15"), &options, &engine, &error));
  CHECK(said[ESPALIER_LOG_VERBOSE] > 0);
  espalier_engine_free(engine);
  const espalier_log_level quiet[] = {ESPALIER_LOG_WARNING, ESPALIER_LOG_SILENT};
  for (size_t i = 0; i < 2; ++i) {
    said[ESPALIER_LOG_VERBOSE] = said[ESPALIER_LOG_WARNING] = 0;
    options.log_level = quiet[i];
    OK(espalier_engine_load(path("tests/golden/llava15"), &options, &engine, &error));
    CHECK(said[ESPALIER_LOG_VERBOSE] == 0 && said[ESPALIER_LOG_WARNING] == 0);
    espalier_engine_free(engine);
  }
}

static void test_facts(const espalier_engine* engine) {
  char* json = NULL;
  OK(espalier_engine_facts_json(engine, &json, &error));
  // As in config.json of tests/golden/llava15.
  CHECK(strstr(json, "\"name\":\"llava15\",\"family\":\"LLaVA-1.5\"") && strstr(json, "\"has_class_token\":true"));
  CHECK(strstr(json, "\"num_layers\":8") && strstr(json, "\"hidden_size\":128"));
  espalier_text_free(json);
  REFUSED(espalier_engine_facts_json(NULL, &json, &error), "engine");
  REFUSED(espalier_engine_facts_json(engine, NULL, &error), "json");
}

static espalier_engine* test_engine(void) {
  espalier_engine* engine = (espalier_engine*)path_buffer;  // anything: it becomes NULL
  REFUSED(espalier_engine_load("/nowhere/at/all", NULL, &engine, &error), "/nowhere/at/all");
  CHECK(!engine);
  REFUSED(espalier_engine_load(NULL, NULL, &engine, &error), "folder");
  REFUSED(espalier_engine_load(path("models/demo"), NULL, NULL, &error), "engine");
  espalier_engine_options options = {.size = 0};
  REFUSED(espalier_engine_load(path("models/demo"), &options, &engine, &error), "engine_options.size");
  options.size = sizeof options - 4;
  REFUSED(espalier_engine_load(path("models/demo"), &options, &engine, &error), "engine_options.size");
  options.size = sizeof options;
  options.dtype = 17;
  REFUSED(espalier_engine_load(path("models/demo"), &options, &engine, &error), "engine_options.dtype");
  options.dtype = ESPALIER_DTYPE_FLOAT32;
  options.device = -1;
  REFUSED(espalier_engine_load(path("models/demo"), &options, &engine, &error), "engine_options.device");
  options.device = ESPALIER_DEVICE_CPU;
  options.threads = -3;
  REFUSED(espalier_engine_load(path("models/demo"), &options, &engine, &error), "engine_options.threads");
  options.threads = 2;
  options.chat_template = "/nowhere/template.jinja";
  REFUSED(espalier_engine_load(path("models/demo"), &options, &engine, &error), "/nowhere/template.jinja");
  options.chat_template = NULL;
  test_log(options);
  // A program of a later edition: fields that this library does not know must be 0.
  struct {
    espalier_engine_options known;
    int64_t later;
  } newer = {.known = options, .later = 1};
  newer.known.size = sizeof newer;
  REFUSED(espalier_engine_load(path("models/demo"), &newer.known, &engine, &error), "does not know");
  newer.later = 0;
  seen s = {.length = 0};
  newer.known.on_progress = on_progress;
  newer.known.user = &s;
  OK(espalier_engine_load(path("tests/golden/llava15"), &newer.known, &engine, &error));
  CHECK(engine && s.num_progress > 0);
  // One of an earlier edition, which ended before `dtype`.
  espalier_engine* other = NULL;
  options.size = 8;
  options.dtype = 17;
  OK(espalier_engine_load(path("tests/golden/llava15"), &options, &other, &error));
  espalier_engine_free(other);
  return engine;
}

static espalier_image* test_images(void) {
  espalier_image* image = NULL;
  REFUSED(espalier_image_read("/nowhere.png", &image, &error), "/nowhere.png");
  REFUSED(espalier_image_read(NULL, &image, &error), "file");
  REFUSED(espalier_image_decode(NULL, 3, &image, &error), "bytes");
  REFUSED(espalier_image_decode("no picture", 10, &image, &error), "image");
  static const unsigned char grey[3 * 2] = {0, 50, 100, 150, 200, 250};
  REFUSED(espalier_image_from_pixels(grey, 5, 3, 2, 0, ESPALIER_PIXELS_GREY, &image, &error), "pixels");
  REFUSED(espalier_image_from_pixels(grey, 6, 3, 2, 0, ESPALIER_PIXELS_RGB, &image, &error), "pixels");
  REFUSED(espalier_image_from_pixels(grey, 6, 3, 2, 0, 5, &image, &error), "format");
  REFUSED(espalier_image_from_pixels(grey, 6, -3, 2, 0, ESPALIER_PIXELS_GREY, &image, &error), "-3");
  REFUSED(espalier_image_from_pixels(NULL, 6, 3, 2, 0, ESPALIER_PIXELS_GREY, &image, &error), "pixels");
  CHECK(!image);
  OK(espalier_image_from_pixels(grey, 6, 3, 2, 0, ESPALIER_PIXELS_GREY, &image, &error));
  CHECK(espalier_image_width(image) == 3 && espalier_image_height(image) == 2);
  espalier_image_free(image);

  static unsigned char bytes[1 << 16];
  FILE* file = fopen(path("tests/golden/llava15/cases/images/100x76_mix_11.png"), "rb");
  const size_t length = file ? fread(bytes, 1, sizeof bytes, file) : 0;
  if (file) fclose(file);
  OK(espalier_image_decode(bytes, length, &image, &error));
  CHECK(espalier_image_width(image) == 76 && espalier_image_height(image) == 100);
  espalier_image_free(image);
  OK(espalier_image_read(path_buffer, &image, &error));
  CHECK(espalier_image_width(image) == 76 && espalier_image_height(image) == 100);
  return image;
}

static espalier_prompt* prompt_of(const espalier_image* image, const char* text) {
  espalier_prompt* prompt = NULL;
  OK(espalier_prompt_new(&prompt, &error));
  if (image) OK(espalier_prompt_add_image(prompt, image, &error));
  OK(espalier_prompt_add_text(prompt, text, &error));
  return prompt;
}

static void test_prompts(const espalier_engine* engine, const espalier_image* image) {
  espalier_prompt* prompt = NULL;
  REFUSED(espalier_prompt_new(NULL, &error), "prompt");
  REFUSED(espalier_prompt_new_raw(NULL, &prompt, &error), "text");
  REFUSED(espalier_prompt_read("/nowhere.json", &prompt, &error), "/nowhere.json");
  REFUSED(espalier_prompt_parse("[{", NULL, &prompt, &error), "messages_json");
  REFUSED(espalier_prompt_parse("[{\"role\": \"user\", \"content\": 3}]", NULL, &prompt, &error), "content");
  REFUSED(espalier_prompt_parse(NULL, NULL, &prompt, &error), "messages_json");
  REFUSED(espalier_prompt_begin_turn(NULL, "user", &error), "prompt");
  REFUSED(espalier_prompt_add_text(NULL, "text", &error), "prompt");
  CHECK(!prompt);

  OK(espalier_prompt_new(&prompt, &error));
  REFUSED(espalier_prompt_begin_turn(prompt, "tool", &error), "tool");
  REFUSED(espalier_prompt_begin_turn(prompt, NULL, &error), "role");
  REFUSED(espalier_prompt_add_text(prompt, NULL, &error), "text");
  REFUSED(espalier_prompt_add_image(prompt, NULL, &error), "image");
  REFUSED(espalier_prompt_pin(prompt, 0, 0, 1, 1, &error), "picture");
  OK(espalier_prompt_begin_turn(prompt, "user", &error));
  OK(espalier_prompt_add_image(prompt, image, &error));
  REFUSED(espalier_prompt_pin(prompt, 0, 0, 77, 1, &error), "76");
  OK(espalier_prompt_pin(prompt, 0, 0, 1, 1, &error));
  OK(espalier_prompt_add_text(prompt, "What?", &error));
  espalier_prompt_free(prompt);

  // A chat of a file, of its text, and the same text as a raw prompt have equally many tokens.
  int64_t of_file = 0, of_text = 0, of_raw = 0, most = 0;
  static const char messages[] =
      "[{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"path\": \"100x76_mix_11.png\"},"
      " {\"type\": \"text\", \"text\": \"What is shown in this image?\"}]}]";
  OK(espalier_prompt_parse(messages, path("tests/golden/llava15/cases/images"), &prompt, &error));
  OK(espalier_engine_count_tokens(engine, prompt, &of_text, &most, &error));
  CHECK(most >= 512);
  espalier_prompt_free(prompt);
  OK(espalier_prompt_new_raw("USER: <image>\nWhat is shown in this image? ASSISTANT:", &prompt, &error));
  REFUSED(espalier_prompt_add_text(prompt, "more", &error), "raw");
  REFUSED(espalier_prompt_begin_turn(prompt, "user", &error), "raw");
  OK(espalier_prompt_add_image(prompt, image, &error));
  OK(espalier_engine_count_tokens(engine, prompt, &of_raw, NULL, &error));
  espalier_prompt_free(prompt);
  CHECK(of_text == of_raw);
  OK(espalier_prompt_read(path("examples/demo/shape/messages.json"), &prompt, &error));
  OK(espalier_engine_count_tokens(engine, prompt, &of_file, NULL, &error));
  CHECK(of_file > 5 * 16);
  espalier_prompt_free(prompt);
  REFUSED(espalier_engine_count_tokens(engine, NULL, &of_file, NULL, &error), "prompt");
  REFUSED(espalier_engine_count_tokens(NULL, NULL, &of_file, NULL, &error), "engine");
}

static void test_policies(void) {
  OK(espalier_policy_check("catp:keep_ratio=2/9 + vtw", &error));
  REFUSED(espalier_policy_check("nothing_such", &error), "nothing_such");
  REFUSED(espalier_policy_check("fastv:keep_ratio=2", &error), "keep_ratio");
  REFUSED(espalier_policy_check(NULL, &error), "spec");

  espalier_policy* policy = NULL;
  REFUSED(espalier_policy_make("nothing_such", NULL, 0, &policy, &error), "nothing_such");
  REFUSED(espalier_policy_make(NULL, NULL, 0, &policy, &error), "spec");
  REFUSED(espalier_policy_make("none", NULL, 1, &policy, &error), "plugins");
  const char* const no_file = NULL;
  REFUSED(espalier_policy_make("none", &no_file, 1, &policy, &error), "plugins");
  const char* const no_plugin = path("README.md");
  REFUSED(espalier_policy_make("none", &no_plugin, 1, &policy, &error), "README.md");
  REFUSED(espalier_policy_make("none", NULL, 0, NULL, &error), "policy");
  CHECK(!policy);
  OK(espalier_policy_make("fastv:layer=5,keep_ratio=1/4", NULL, 0, &policy, &error));
  CHECK(strncmp(espalier_policy_spec(policy), "fastv:", 6) == 0 && strstr(espalier_policy_spec(policy), "layer=5"));
  espalier_policy_free(policy);
}

static const espalier_generation_options greedy = {
    .size = sizeof greedy, .max_new_tokens = 16, .sampling = ESPALIER_SAMPLING_GREEDY, .ignore_eos = 1};

static espalier_request request_of(const espalier_prompt* prompt, const char* policy) {
  const espalier_request request = {.size = sizeof request, .prompt = prompt, .policy = policy, .generation = &greedy};
  return request;
}

static size_t num_kept(const espalier_result* result) {
  size_t count = 0;
  espalier_result_kept(result, &count);
  return count;
}

static void test_generate(const espalier_engine* engine, const espalier_image* image, const char* greedy_tokens,
                          const char* prompt_tokens) {
  // Transformers' answer, and what the callbacks saw of it.
  espalier_prompt* prompt = prompt_of(NULL, "How are you? Count: 1, 2, 3.");
  espalier_request request = request_of(prompt, NULL);
  seen s = {.length = 0};
  espalier_callbacks callbacks = watch(&s);
  espalier_result* result = NULL;
  OK(espalier_engine_generate(engine, &request, &callbacks, &result, &error));
  size_t count = 0, length = 0;
  const int32_t* ids = espalier_result_tokens(result, &count);
  CHECK(is_list(ids, count, greedy_tokens));
  const char* text = espalier_result_text(result, &length);
  CHECK(length == strlen(text) && s.length == length && memcmp(s.text, text, length) == 0);
  CHECK(s.num_tokens == count && memcmp(s.ids, ids, count * sizeof *ids) == 0);
  CHECK(s.num_progress > 0 && s.num_prompts == 1 && s.num_points == 0);
  CHECK(strcmp(espalier_result_finish_reason(result), "length") == 0);
  espalier_result_free(result);

  // Greedy knows no penalty; without sampling there is one.
  espalier_generation_options generation = greedy;
  generation.repetition_penalty = 5;
  request.generation = &generation;
  OK(espalier_engine_generate(engine, &request, NULL, &result, &error));
  ids = espalier_result_tokens(result, &count);
  CHECK(is_list(ids, count, greedy_tokens));
  espalier_result_free(result);
  generation.sampling = ESPALIER_SAMPLING_OFF;
  OK(espalier_engine_generate(engine, &request, NULL, &result, &error));
  ids = espalier_result_tokens(result, &count);
  CHECK(!is_list(ids, count, greedy_tokens));
  espalier_result_free(result);
  generation = greedy;

  // A stop string, an answer that is stopped, one that is cancelled.
  const char* stop[] = {"lef"};
  generation.stop = stop;
  generation.num_stop = 1;
  OK(espalier_engine_generate(engine, &request, NULL, &result, &error));
  CHECK(strcmp(espalier_result_finish_reason(result), "stop_string") == 0);
  CHECK(!strstr(espalier_result_text(result, NULL), "lef"));
  espalier_result_free(result);
  request.generation = &greedy;
  s.answer = ESPALIER_STOP;
  OK(espalier_engine_generate(engine, &request, &callbacks, &result, &error));
  CHECK(strcmp(espalier_result_finish_reason(result), "stopped") == 0);
  espalier_result_free(result);
  s.answer = 99;  // anything else gives up
  OK(espalier_engine_generate(engine, &request, &callbacks, &result, &error));
  CHECK(strcmp(espalier_result_finish_reason(result), "cancelled") == 0);
  espalier_result_free(result);
  s.answer = ESPALIER_GO;
  s.cancel = 1;
  OK(espalier_engine_generate(engine, &request, &callbacks, &result, &error));
  CHECK(strcmp(espalier_result_finish_reason(result), "cancelled") == 0);
  espalier_result_free(result);

  // Wrong requests.
  result = NULL;
  REFUSED(espalier_engine_generate(engine, NULL, NULL, &result, &error), "request");
  REFUSED(espalier_engine_generate(NULL, &request, NULL, &result, &error), "engine");
  REFUSED(espalier_engine_generate(engine, &request, NULL, NULL, &error), "result");
  request.policy = "nothing_such";
  REFUSED(espalier_engine_generate(engine, &request, NULL, &result, &error), "nothing_such");
  request.policy = NULL;
  request.size = 3;
  REFUSED(espalier_engine_generate(engine, &request, NULL, &result, &error), "request.size");
  request.size = sizeof request;
  callbacks.size = 0;
  REFUSED(espalier_engine_generate(engine, &request, &callbacks, &result, &error), "callbacks.size");
  request.prompt = NULL;
  REFUSED(espalier_engine_generate(engine, &request, NULL, &result, &error), "request.prompt");
  request.prompt = prompt;
  request.generation = &generation;
  generation.stop = NULL;
  REFUSED(espalier_engine_generate(engine, &request, NULL, &result, &error), "generation_options.stop");
  generation.num_stop = 0;
  generation.sampling = 4;
  REFUSED(espalier_engine_generate(engine, &request, NULL, &result, &error), "generation_options.sampling");
  generation.sampling = ESPALIER_SAMPLING_ON;
  generation.top_k = -2;
  REFUSED(espalier_engine_generate(engine, &request, NULL, &result, &error), "top_k");
  generation.top_k = -1;
  generation.temperature = -1;
  REFUSED(espalier_engine_generate(engine, &request, NULL, &result, &error), "temperature");
  generation.temperature = 0;
  generation.top_logprobs = 2;
  REFUSED(espalier_engine_generate(engine, &request, NULL, &result, &error), "top_logprobs");
  CHECK(!result);
  char* json = NULL;
  REFUSED(espalier_result_json(NULL, &json, &error), "result");
  REFUSED(espalier_result_stats_json(NULL, &json, &error), "result");
  REFUSED(espalier_result_trace_json(NULL, NULL, &error), "json");
  CHECK(!json);

  // Sampled, with likelihoods: the same seed gives the same tokens.
  generation.logprobs = 1;
  generation.temperature = 1.5;
  generation.top_p = 0.9;
  generation.repetition_penalty = 1.1;
  generation.seed = 7;
  OK(espalier_engine_generate(engine, &request, NULL, &result, &error));
  OK(espalier_result_json(result, &json, &error));
  CHECK(strstr(json, "\"logprobs\":[{\"id\":"));
  espalier_text_free(json);
  espalier_result* again = NULL;
  OK(espalier_engine_generate(engine, &request, NULL, &again, &error));
  CHECK(strcmp(espalier_result_text(result, NULL), espalier_result_text(again, NULL)) == 0);
  espalier_result_free(again);
  espalier_result_free(result);
  espalier_prompt_free(prompt);

  // A picture, pruned: what stays, and a token that is pinned.
  prompt = prompt_of(image, "What is shown in this image?");
  request = request_of(prompt, "random:num_kept=3");
  callbacks = watch(&s);
  memset(&s, 0, sizeof s);
  OK(espalier_engine_generate(engine, &request, &callbacks, &result, &error));
  ids = espalier_result_prompt_tokens(result, &count);
  CHECK(is_list(ids, count, prompt_tokens));
  CHECK(num_kept(result) == 3 && espalier_result_kept(result, NULL)[0] >= 3);
  CHECK(s.num_prompts == 1 && s.num_points == 1);
  OK(espalier_result_stats_json(result, &json, &error));
  CHECK(strstr(json, "\"image_tokens\":[16]") && strstr(json, "\"time_ms\":{"));
  espalier_text_free(json);
  OK(espalier_result_trace_json(result, &json, &error));
  CHECK(strstr(json, "\"kept\":[") && !strstr(json, "\"dropped\":["));
  espalier_text_free(json);
  espalier_result_free(result);
  request.trace = 1;
  request.salt = "mine";
  OK(espalier_engine_generate(engine, &request, NULL, &result, &error));
  OK(espalier_result_trace_json(result, &json, &error));
  CHECK(strstr(json, "\"dropped\":[") && strstr(json, "\"tokens_per_image\":[3]") &&
        strstr(json, "\"position_id\":[["));
  espalier_text_free(json);
  espalier_result_free(result);
  espalier_prompt_free(prompt);
  OK(espalier_prompt_new(&prompt, &error));
  OK(espalier_prompt_add_image(prompt, image, &error));
  OK(espalier_prompt_pin(prompt, 30, 42, 31, 43, &error));
  OK(espalier_prompt_add_text(prompt, "What?", &error));
  request.prompt = prompt;
  request.policy = "random:num_kept=1";
  OK(espalier_engine_generate(engine, &request, NULL, &result, &error));
  // Three tokens of text, then 4 x 4 patches of the square in the middle, 19 pixels each, from (0, 12) on: row 1,
  // column 1.
  CHECK(num_kept(result) == 1 && espalier_result_kept(result, NULL)[0] == 3 + 4 + 1);
  espalier_result_free(result);
  espalier_prompt_free(prompt);
}

// A plugin's policy, in a request and in a pipeline, freed before it is used; and what a target came to.
static void test_made_policies(const espalier_engine* engine, const espalier_image* image, const char* plugin) {
  espalier_prompt* prompt = prompt_of(image, "What is shown in this image?");
  espalier_request request = request_of(prompt, "nothing_such");
  espalier_policy* policy = NULL;
  espalier_result* result = NULL;
  REFUSED(espalier_policy_make("keep_centre:share=2", &plugin, 1, &policy, &error), "share");
  // Of 4 x 4 tokens the 2 x 2 in the middle, and of these one: the pipeline's amounts are of all tokens.
  const char* const specs[] = {"keep_centre:share=1/2", "keep_centre:share=1/2 + uniform:num_kept=1"};
  for (size_t i = 0; i < 2; ++i) {
    OK(espalier_policy_make(specs[i], &plugin, 1, &policy, &error));
    request.custom = policy;
    OK(espalier_engine_generate(engine, &request, NULL, &result, &error));
    CHECK(num_kept(result) == (i == 0 ? 4 : 1));
    if (i == 0) {  // three tokens of text, then the rows
      const int64_t* kept = espalier_result_kept(result, NULL);
      CHECK(kept[0] == 3 + 5 && kept[1] == 3 + 6 && kept[2] == 3 + 9 && kept[3] == 3 + 10);
    }
    espalier_result_free(result);
    espalier_policy_free(policy);
  }
  // A session keeps it.
  OK(espalier_policy_make(specs[0], &plugin, 1, &policy, &error));
  const espalier_session_options options = {.size = sizeof options, .generation = &greedy, .custom = policy};
  espalier_session* session = NULL;
  OK(espalier_session_new(engine, &options, &session, &error));
  espalier_policy_free(policy);
  OK(espalier_session_ask(session, prompt, NULL, &result, &error));
  CHECK(num_kept(result) == 4);
  espalier_result_free(result);
  espalier_session_free(session);

  // Room for the prompt alone: of the picture's 16 tokens four go for the answer's four, and `solved` says so.
  espalier_generation_options four = greedy;
  four.max_new_tokens = 4;
  request.generation = &four;
  char *json = NULL, spec[64];
  request.custom = NULL;
  request.policy = "none";
  OK(espalier_engine_generate(engine, &request, NULL, &result, &error));
  OK(espalier_result_stats_json(result, &json, &error));
  CHECK(!strstr(json, "\"solved\""));
  const char* bytes = strstr(json, "\"kv_bytes\":");
  snprintf(spec, sizeof spec, "divprune:kv=%ldB", bytes ? strtol(bytes + strlen("\"kv_bytes\":"), NULL, 10) : 0);
  espalier_text_free(json);
  espalier_result_free(result);
  request.policy = spec;
  OK(espalier_engine_generate(engine, &request, NULL, &result, &error));
  OK(espalier_result_stats_json(result, &json, &error));
  CHECK(num_kept(result) == 12);
  CHECK(strstr(json, "\"solved\":{\"policy\":\"divprune:keep_ratio=") && strstr(json, "\"fits\":true"));
  espalier_text_free(json);
  espalier_result_free(result);
  espalier_prompt_free(prompt);
}

// Several answers to one prompt: each is that of its seed alone.
static void test_samples(const espalier_engine* engine, const espalier_image* image) {
  espalier_generation_options sampled = greedy;
  sampled.sampling = ESPALIER_SAMPLING_ON;
  sampled.temperature = 2;
  sampled.seed = 5;
  espalier_prompt* prompt = prompt_of(image, "What is shown in this image?");
  espalier_request request = request_of(prompt, "divprune:keep_ratio=1/2");
  request.generation = &sampled;
  espalier_scheduler* scheduler = NULL;
  OK(espalier_scheduler_new(engine, NULL, &scheduler, &error));
  static espalier_ticket* tickets[2000];
  seen s = {.length = 0};
  espalier_callbacks callbacks = watch(&s);
  REFUSED(espalier_scheduler_submit_samples(scheduler, &request, 3, &callbacks, tickets, &error), "on_text");
  callbacks.on_text = NULL;
  REFUSED(espalier_scheduler_submit_samples(scheduler, &request, 3, &callbacks, tickets, &error), "on_token");
  callbacks.on_token = NULL;
  REFUSED(espalier_scheduler_submit_samples(scheduler, &request, 0, NULL, tickets, &error), "samples");
  REFUSED(espalier_scheduler_submit_samples(scheduler, &request, 1025, NULL, tickets, &error), "samples");
  REFUSED(espalier_scheduler_submit_samples(scheduler, &request, 3, NULL, NULL, &error), "tickets");
  REFUSED(espalier_scheduler_submit_samples(NULL, &request, 3, NULL, tickets, &error), "scheduler");
  tickets[0] = (espalier_ticket*)path_buffer;  // anything: it becomes NULL
  REFUSED(espalier_scheduler_submit_samples(scheduler, NULL, 3, NULL, tickets, &error), "request");
  CHECK(!tickets[0]);
  OK(espalier_scheduler_submit_samples(scheduler, &request, 3, &callbacks, tickets, &error));
  int differ = 0;
  char first[4096] = "";
  for (int i = 0; i < 3; ++i) {
    espalier_result *result = NULL, *alone = NULL;
    OK(espalier_ticket_result(tickets[i], &result, &error));
    OK(espalier_engine_generate(engine, &request, NULL, &alone, &error));
    CHECK(strcmp(espalier_result_text(result, NULL), espalier_result_text(alone, NULL)) == 0);
    if (i == 0) snprintf(first, sizeof first, "%s", espalier_result_text(result, NULL));
    differ += strcmp(espalier_result_text(result, NULL), first) != 0;
    espalier_result_free(alone);
    espalier_result_free(result);
    espalier_ticket_free(tickets[i]);
    ++sampled.seed;
  }
  CHECK(differ > 0);
  espalier_scheduler_free(scheduler);
  CHECK(s.num_ends == 3);
  espalier_prompt_free(prompt);
}

static void test_scheduler(const espalier_engine* engine, const espalier_image* image) {
  espalier_prompt* prompt = prompt_of(image, "What is shown in this image?");
  espalier_request request = request_of(prompt, "divprune:keep_ratio=1/2");
  espalier_result *alone = NULL, *result = NULL, *again = NULL;
  OK(espalier_engine_generate(engine, &request, NULL, &alone, &error));

  espalier_scheduler* scheduler = NULL;
  espalier_ticket *ticket = NULL, *other = NULL;
  REFUSED(espalier_scheduler_new(NULL, NULL, &scheduler, &error), "engine");
  OK(espalier_scheduler_new(engine, NULL, &scheduler, &error));
  REFUSED(espalier_scheduler_submit(scheduler, NULL, NULL, &ticket, &error), "request");
  REFUSED(espalier_scheduler_submit(NULL, &request, NULL, &ticket, &error), "scheduler");
  request.policy = "nothing_such";
  REFUSED(espalier_scheduler_submit(scheduler, &request, NULL, &ticket, &error), "nothing_such");
  request.policy = "divprune:keep_ratio=1/2";
  CHECK(!ticket);
  seen s = {.length = 0};
  const espalier_callbacks callbacks = watch(&s);
  OK(espalier_scheduler_submit(scheduler, &request, &callbacks, &ticket, &error));
  OK(espalier_scheduler_submit(scheduler, &request, NULL, &other, &error));
  char text[4096] = "";
  for (espalier_next next = ESPALIER_NEXT_TEXT; next != ESPALIER_NEXT_END;) {
    char* piece = NULL;
    size_t length = 0;
    OK(espalier_ticket_next(ticket, 60000, &next, &piece, &length, &error));
    CHECK(next != ESPALIER_NEXT_TEXT || (piece && length == strlen(piece)));
    if (piece && strlen(text) + length < sizeof text) strcat(text, piece);
    espalier_text_free(piece);
  }
  CHECK(strcmp(text, espalier_result_text(alone, NULL)) == 0);
  OK(espalier_ticket_result(ticket, &result, &error));
  CHECK(espalier_ticket_is_done(ticket) == 1);
  CHECK(s.length == strlen(text) && memcmp(s.text, text, s.length) == 0);
  OK(espalier_ticket_result(ticket, &again, &error));
  espalier_ticket_free(ticket);  // results stay
  CHECK(strcmp(espalier_result_text(result, NULL), text) == 0 && strcmp(espalier_result_text(again, NULL), text) == 0);
  espalier_result_free(result);
  espalier_result_free(again);
  OK(espalier_ticket_result(other, &result, &error));
  CHECK(strcmp(espalier_result_text(result, NULL), text) == 0);
  espalier_result_free(result);
  espalier_ticket_free(other);
  espalier_scheduler_free(scheduler);
  CHECK(s.num_ends == 1);

  // A loop of the caller's own: nothing moves without it.
  const espalier_scheduler_options options = {.size = sizeof options, .max_waiting = 1, .no_own_thread = 1};
  OK(espalier_scheduler_new(engine, &options, &scheduler, &error));
  OK(espalier_scheduler_submit(scheduler, &request, NULL, &ticket, &error));
  CHECK(espalier_scheduler_submit(scheduler, &request, NULL, &other, &error) == ESPALIER_QUEUE_FULL);
  CHECK(!other && espalier_error_code(error) == ESPALIER_QUEUE_FULL);
  espalier_error_free(error);
  char* json = NULL;
  OK(espalier_scheduler_load_json(scheduler, &json, &error));
  CHECK(strstr(json, "\"waiting\":1,\"running\":0,"));
  espalier_text_free(json);
  REFUSED(espalier_scheduler_load_json(NULL, &json, &error), "scheduler");
  REFUSED(espalier_scheduler_step(NULL, NULL, &error), "scheduler");
  espalier_next next = ESPALIER_NEXT_END;
  char* piece = (char*)path_buffer;
  OK(espalier_ticket_next(ticket, 1, &next, &piece, NULL, &error));
  CHECK(next == ESPALIER_NEXT_TIMEOUT && !piece && !espalier_ticket_is_done(ticket));
  REFUSED(espalier_ticket_next(ticket, -1, &next, &piece, NULL, &error), "timeout_ms");
  REFUSED(espalier_ticket_next(ticket, 1, NULL, &piece, NULL, &error), "next");
  REFUSED(espalier_ticket_next(NULL, 1, &next, &piece, NULL, &error), "ticket");
  REFUSED(espalier_ticket_result(NULL, &result, &error), "ticket");
  int32_t worked = 1;
  while (worked) OK(espalier_scheduler_step(scheduler, &worked, &error));
  OK(espalier_ticket_result(ticket, &result, &error));
  CHECK(strcmp(espalier_result_text(result, NULL), text) == 0);
  espalier_result_free(result);
  espalier_ticket_free(ticket);

  // Cancelled before it began; freed in the wrong order.
  OK(espalier_scheduler_submit(scheduler, &request, NULL, &ticket, &error));
  espalier_ticket_cancel(ticket);
  do OK(espalier_scheduler_step(scheduler, &worked, &error));
  while (worked);
  OK(espalier_ticket_result(ticket, &result, &error));
  CHECK(strcmp(espalier_result_finish_reason(result), "cancelled") == 0);
  espalier_result_free(result);
  espalier_scheduler_free(scheduler);
  CHECK(espalier_ticket_is_done(ticket) == 1);
  espalier_ticket_free(ticket);
  espalier_result_free(alone);
  espalier_prompt_free(prompt);
}

// Frees the engine before the session.
static void test_session(espalier_engine* engine, const espalier_image* image) {
  espalier_session* session = NULL;
  espalier_session_options options = {
      .size = sizeof options, .policy = "nothing_such", .generation = &greedy, .system = "Be brief."};
  REFUSED(espalier_session_new(engine, &options, &session, &error), "nothing_such");
  REFUSED(espalier_session_new(NULL, NULL, &session, &error), "engine");
  CHECK(!session);
  options.policy = "uniform:keep_ratio=1/2";
  OK(espalier_session_new(engine, &options, &session, &error));
  espalier_result *result = NULL, *whole = NULL;
  espalier_prompt* raw = NULL;
  OK(espalier_prompt_new_raw("text", &raw, &error));
  REFUSED(espalier_session_ask(session, raw, NULL, &result, &error), "turn");
  espalier_prompt_free(raw);
  REFUSED(espalier_session_ask(session, NULL, NULL, &result, &error), "turn");
  espalier_prompt *first = prompt_of(image, "What is shown?"), *second = prompt_of(NULL, "And else?");
  REFUSED(espalier_session_ask(NULL, first, NULL, &result, &error), "session");

  // The second answer is that to the whole conversation as one prompt.
  espalier_prompt* conversation = NULL;
  OK(espalier_prompt_new(&conversation, &error));
  OK(espalier_prompt_begin_turn(conversation, "system", &error));
  OK(espalier_prompt_add_text(conversation, "Be brief.", &error));
  OK(espalier_prompt_begin_turn(conversation, "user", &error));
  OK(espalier_prompt_add_image(conversation, image, &error));
  OK(espalier_prompt_add_text(conversation, "What is shown?", &error));
  OK(espalier_session_ask(session, first, NULL, &result, &error));
  OK(espalier_prompt_begin_turn(conversation, "assistant", &error));
  OK(espalier_prompt_add_text(conversation, espalier_result_text(result, NULL), &error));
  espalier_result_free(result);
  OK(espalier_prompt_begin_turn(conversation, "user", &error));
  OK(espalier_prompt_add_text(conversation, "And else?", &error));
  espalier_request request = request_of(conversation, "uniform:keep_ratio=1/2");
  OK(espalier_engine_generate(engine, &request, NULL, &whole, &error));
  espalier_engine_free(engine);
  OK(espalier_session_ask(session, second, NULL, &result, &error));
  CHECK(strcmp(espalier_result_text(result, NULL), espalier_result_text(whole, NULL)) == 0);
  espalier_result_free(result);
  espalier_result_free(whole);
  espalier_prompt_free(conversation);
  espalier_prompt_free(first);
  espalier_prompt_free(second);
  espalier_session_free(session);
}

static void test_command_line(void) {
  char program[] = "espalier", command[] = "nothing-such";
  char* arguments[] = {program, command, NULL};
  CHECK(espalier_command_line(2, arguments) == 2);
}

int main(int argc, char** argv) {
  if (argc != 6)
    return fprintf(stderr, "usage: every_function SOURCE_FOLDER VERSION GREEDY_TOKENS PROMPT_TOKENS PLUGIN\n"), 2;
  source_folder = argv[1];
  CHECK(strcmp(espalier_version(), argv[2]) == 0);
  test_nothing();
  espalier_engine* engine = test_engine();
  espalier_image* image = test_images();
  test_prompts(engine, image);
  test_policies();
  test_command_line();
  test_generate(engine, image, argv[3], argv[4]);
  test_facts(engine);
  test_made_policies(engine, image, argv[5]);
  test_samples(engine, image);
  test_scheduler(engine, image);
  test_session(engine, image);
  espalier_image_free(image);
  espalier_error_free(error);
  if (failures == 0) printf("every function of espalier.h: as it should be\n");
  return failures != 0;
}
