// SPDX-License-Identifier: Apache-2.0
// Espalier from C (C11) and from whatever calls C: engines, requests, schedulers, sessions. It is the C++ interface of
// engine.h, scheduler.h and session.h, whose comments say more about each option.
//
// Handles. Opaque; each is made by one function and given back to the `_free` of its name, which takes NULL too. They
// may be freed in any order: a scheduler or session keeps what it needs of its engine, a prompt what it needs of its
// images. No call may still be using a handle when it is freed.
//
// Structs. Each begins with `size`, which is sizeof(the struct), and every field's 0 or NULL is its default: write
// `espalier_engine_options options = {.size = sizeof options}`, in C++ `{}` and then options.size. Fields are only ever
// added at the end. A program built for an older library runs with a newer one; a field that the library does not know
// is refused unless it is 0. Every field takes 8 bytes, so that nothing lies between them. Structs are read during the
// call and need not live longer; what `user` points to must, as said there.
//
// Errors. A function that can fail returns an espalier_code and takes `error` last. With an `error` that is not NULL,
// *error becomes NULL when all went well, else a new espalier_error, which the caller frees. What the function makes is
// then NULL. Nothing is kept per thread or per process. No C++ exception leaves the library.
//
// Text is UTF-8 and ends with a zero byte, which `length` does not count. File names are bytes as the system takes
// them. A `char*` that comes back belongs to the caller: espalier_text_free. A `const char*` lives as long as its
// handle.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define ESPALIER_API __attribute__((visibility("default")))
#else
#define ESPALIER_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

// "major.minor.patch" of the library that was loaded.
ESPALIER_API const char* espalier_version(void);

ESPALIER_API void espalier_text_free(char* text);

// ---- errors ----

typedef enum espalier_code {
  ESPALIER_OK = 0,
  ESPALIER_FAILED = 1,         // while running: what libtorch, CUDA or the system threw
  ESPALIER_BAD_INPUT = 2,      // a file, a prompt, a policy spec, an option, an argument
  ESPALIER_OUT_OF_MEMORY = 3,  // of the host or the device; the engine answers the next request
  ESPALIER_QUEUE_FULL = 4,     // of a scheduler; a later try may succeed
} espalier_code;

typedef struct espalier_error espalier_error;

ESPALIER_API espalier_code espalier_error_code(const espalier_error* error);  // of NULL: ESPALIER_OK
// One line for a person: which file or argument, which field, what was expected and what came. Of NULL: "".
ESPALIER_API const char* espalier_error_message(const espalier_error* error);
ESPALIER_API void espalier_error_free(espalier_error* error);

// ---- engine ----

typedef struct espalier_engine espalier_engine;

typedef enum espalier_dtype {
  ESPALIER_DTYPE_OF_CHECKPOINT = 0,
  ESPALIER_DTYPE_FLOAT32 = 1,
  ESPALIER_DTYPE_BFLOAT16 = 2,
  ESPALIER_DTYPE_FLOAT16 = 3,
} espalier_dtype;

typedef enum espalier_device { ESPALIER_DEVICE_CPU = 0, ESPALIER_DEVICE_CUDA = 1 } espalier_device;

// done of total; `stage` is "load", "encode", "prefill" or "decode".
typedef void (*espalier_progress_callback)(void* user, const char* stage, int64_t done, int64_t total);

typedef enum espalier_log_level {
  ESPALIER_LOG_WARNING = 0,  // what works, but may not be what was meant
  ESPALIER_LOG_VERBOSE = 1,  // also what was loaded and how it will run: family, chat template, kernels, memory
  ESPALIER_LOG_SILENT = 2,   // as a level of an engine: nothing is said
} espalier_log_level;

// One line without its end, and what it is: espalier_log_level. Called by any thread that uses the engine, one call at
// a time; it must not call the engine.
typedef void (*espalier_log_callback)(void* user, int32_t level, const char* message, size_t length);

typedef struct espalier_engine_options {
  size_t size;
  int64_t dtype;                           // espalier_dtype
  int64_t device;                          // espalier_device
  int64_t threads;                         // 1 to 1024; 0: as many as the library chooses
  int64_t int8_weights;                    // 1: the decoder's linear layers as int8, one scale per output
  int64_t no_decode_graphs;                // 1: on CUDA, steps of decoding are launched one by one
  const char* chat_template;               // file in place of the checkpoint's own template; NULL: its own
  int64_t image_cache_bytes;               // for what the vision tower made of recent pictures; 0: nothing is kept
  int64_t prefix_cache_bytes;              // for beginnings of prompts; 0: nothing is kept beyond what sessions hold
  espalier_progress_callback on_progress;  // during the load, on the calling thread; may be NULL
  void* user;                              // for on_progress and on_log; with on_log it must live as long as the engine
  int64_t log_level;                       // espalier_log_level
  espalier_log_callback on_log;            // in place of stderr; may be NULL
} espalier_engine_options;

// Loads a checkpoint folder. `options` may be NULL. Calls on one engine from several threads at once are safe.
ESPALIER_API espalier_code espalier_engine_load(const char* folder, const espalier_engine_options* options,
                                                espalier_engine** engine, espalier_error** error);
ESPALIER_API void espalier_engine_free(espalier_engine* engine);
// What the model is, as docs/formats.md describes it: family, layers, heads, sizes, defaults of policies.
ESPALIER_API espalier_code espalier_engine_facts_json(const espalier_engine* engine, char** json,
                                                      espalier_error** error);

// ---- pictures ----

// A decoded picture. Const once made: any number of prompts and threads may use it.
typedef struct espalier_image espalier_image;

typedef enum espalier_pixel_format {
  ESPALIER_PIXELS_RGB = 0,
  ESPALIER_PIXELS_BGR = 1,
  ESPALIER_PIXELS_RGBA = 2,  // alpha is composited onto white
  ESPALIER_PIXELS_BGRA = 3,
  ESPALIER_PIXELS_GREY = 4,
} espalier_pixel_format;

// JPEG, PNG or WebP, from a file or from its `length` bytes in memory.
ESPALIER_API espalier_code espalier_image_read(const char* file, espalier_image** image, espalier_error** error);
ESPALIER_API espalier_code espalier_image_decode(const void* bytes, size_t length, espalier_image** image,
                                                 espalier_error** error);
// A copy of `length` bytes of pixels, one byte per channel, rows from the top. `stride`: bytes from one row to the
// next; 0: rows follow one another. `format`: espalier_pixel_format.
ESPALIER_API espalier_code espalier_image_from_pixels(const void* pixels, size_t length, int32_t width, int32_t height,
                                                      int64_t stride, int32_t format, espalier_image** image,
                                                      espalier_error** error);
ESPALIER_API int32_t espalier_image_width(const espalier_image* image);  // of NULL: 0
ESPALIER_API int32_t espalier_image_height(const espalier_image* image);
ESPALIER_API void espalier_image_free(espalier_image* image);

// ---- prompts ----

// What is asked: text and pictures in order, as the turns of a chat or as one exact text. One thread at a time may
// build it; afterwards any number may use it.
typedef struct espalier_prompt espalier_prompt;

// A chat without turns. Text and pictures that are added before any turn has begun are one turn of the user's.
ESPALIER_API espalier_code espalier_prompt_new(espalier_prompt** prompt, espalier_error** error);
// The exact text, with the model's image placeholder (`<image>` for LLaVA) where each picture goes that is added.
ESPALIER_API espalier_code espalier_prompt_new_raw(const char* text, espalier_prompt** prompt, espalier_error** error);
// The chat of a messages.json file, or of its text: then pictures are looked for in `folder` (NULL: the current one).
// docs/formats.md describes the form.
ESPALIER_API espalier_code espalier_prompt_read(const char* messages_json, espalier_prompt** prompt,
                                                espalier_error** error);
ESPALIER_API espalier_code espalier_prompt_parse(const char* messages_json, const char* folder,
                                                 espalier_prompt** prompt, espalier_error** error);
// Begins a turn of "system", "user" or "assistant". Earlier turns of user and assistant are in-context examples; the
// last turn is the user's.
ESPALIER_API espalier_code espalier_prompt_begin_turn(espalier_prompt* prompt, const char* role,
                                                      espalier_error** error);
ESPALIER_API espalier_code espalier_prompt_add_text(espalier_prompt* prompt, const char* text, espalier_error** error);
ESPALIER_API espalier_code espalier_prompt_add_image(espalier_prompt* prompt, const espalier_image* image,
                                                     espalier_error** error);
// A rectangle of the picture added last, in its pixels, x1 and y1 exclusive: tokens that touch it are never dropped by
// the built-in policies. May be called again for further rectangles.
ESPALIER_API espalier_code espalier_prompt_pin(espalier_prompt* prompt, int32_t x0, int32_t y0, int32_t x1, int32_t y1,
                                               espalier_error** error);
ESPALIER_API void espalier_prompt_free(espalier_prompt* prompt);

// How long the prompt is for this engine, images expanded, and the longest sequence that its model takes. `tokens` and
// `max_positions` may be NULL.
ESPALIER_API espalier_code espalier_engine_count_tokens(const espalier_engine* engine, const espalier_prompt* prompt,
                                                        int64_t* tokens, int64_t* max_positions,
                                                        espalier_error** error);

// ---- policies ----

// ESPALIER_OK for a spec that can be asked for, such as "catp:keep_ratio=2/9". Files that it names are read.
ESPALIER_API espalier_code espalier_policy_check(const char* spec, espalier_error** error);

// A policy that is made once, for any number of requests, sessions, engines and threads. Const.
typedef struct espalier_policy espalier_policy;

// Of a spec, which may name the policies of `plugins` beside the built-in ones: files of shared objects that were built
// against this library (policy_plugin.h). A plugin's name goes before a built-in one. They stay loaded while the policy
// lives. `plugins` may be NULL where num_plugins is 0.
ESPALIER_API espalier_code espalier_policy_make(const char* spec, const char* const* plugins, size_t num_plugins,
                                                espalier_policy** policy, espalier_error** error);
// What it is, with the options that differ from their defaults. Of NULL: NULL.
ESPALIER_API const char* espalier_policy_spec(const espalier_policy* policy);
ESPALIER_API void espalier_policy_free(espalier_policy* policy);

// ---- requests ----

typedef enum espalier_sampling {
  ESPALIER_SAMPLING_OF_CHECKPOINT = 0,
  ESPALIER_SAMPLING_ON = 1,
  ESPALIER_SAMPLING_OFF = 2,
  ESPALIER_SAMPLING_GREEDY = 3,  // plain argmax: no sampling, no penalty
} espalier_sampling;

typedef struct espalier_generation_options {
  size_t size;
  int64_t max_new_tokens;  // 0: 128
  int64_t sampling;        // espalier_sampling
  int64_t ignore_eos;
  double temperature;         // > 0; 0: the checkpoint's
  int64_t top_k;              // -1: off; 0: the checkpoint's
  double top_p;               // in (0, 1]; 0: the checkpoint's
  double repetition_penalty;  // > 0; 0: the checkpoint's
  uint64_t seed;              // same seed, same tokens, whatever else runs
  const char* const* stop;    // the answer ends before the first of these, which is not part of it
  size_t num_stop;
  int64_t logprobs;      // 1: the result says how likely each new token was,
  int64_t top_logprobs;  // and so many alternatives, 0 to 20
} espalier_generation_options;

typedef struct espalier_request {
  size_t size;
  const espalier_prompt* prompt;
  const char* policy;                             // NULL: "none"
  const espalier_generation_options* generation;  // NULL: all defaults
  const char* salt;                               // beginnings are used again only among requests of equal salt
  int64_t trace;                                  // 1: espalier_result_trace_json has everything
  const espalier_policy* custom;                  // a policy that was made, which then wins; NULL: `policy`
} espalier_request;

// What on_text answers: go on; end the answer here; give it up. Any other value gives it up.
typedef enum espalier_continue { ESPALIER_GO = 0, ESPALIER_STOP = 1, ESPALIER_CANCEL = 2 } espalier_continue;

// Called on the thread that computes: with espalier_engine_generate and espalier_session_ask often another thread than
// the caller's, which waits meanwhile. They must return, must not wait for another call on the same engine or
// scheduler, and what `user` points to must live until the request has ended. Each may be NULL.
typedef struct espalier_callbacks {
  size_t size;
  void* user;                                                        // handed to each
  int32_t (*on_text)(void* user, const char* piece, size_t length);  // each piece of text as it becomes certain
  void (*on_token)(void* user, int32_t id);                          // each new token, before its text
  int32_t (*should_cancel)(void* user);                              // asked at least once per layer; 1: cancel
  espalier_progress_callback on_progress;
  void (*on_prompt)(void* user, const char* json, size_t length);  // every token before anything leaves
  void (*on_point)(void* user, const char* json, size_t length);   // each point at which the policy has acted
  void (*on_end)(void* user);                                      // of a scheduler: the last call
} espalier_callbacks;

// An answer. Const: any number of threads may read it.
typedef struct espalier_result espalier_result;

// Answers one request and waits for the end. `callbacks` may be NULL.
ESPALIER_API espalier_code espalier_engine_generate(const espalier_engine* engine, const espalier_request* request,
                                                    const espalier_callbacks* callbacks, espalier_result** result,
                                                    espalier_error** error);

// The text and its bytes; `length` may be NULL. Of a NULL result, here and below: NULL and 0.
ESPALIER_API const char* espalier_result_text(const espalier_result* result, size_t* length);
// "eos", "length", "stop_string", "stopped" or "cancelled".
ESPALIER_API const char* espalier_result_finish_reason(const espalier_result* result);
// The new tokens; the end token, if one came, is the last.
ESPALIER_API const int32_t* espalier_result_tokens(const espalier_result* result, size_t* count);
// Those of the prompt, images expanded.
ESPALIER_API const int32_t* espalier_result_prompt_tokens(const espalier_result* result, size_t* count);
// Which image tokens the policy kept to the end: places in the prompt's tokens, ascending.
ESPALIER_API const int64_t* espalier_result_kept(const espalier_result* result, size_t* count);
// JSON as docs/formats.md describes it: everything, as `espalier generate --json` prints it; the statistics alone; the
// points of the policy (whole with espalier_request.trace).
ESPALIER_API espalier_code espalier_result_json(const espalier_result* result, char** json, espalier_error** error);
ESPALIER_API espalier_code espalier_result_stats_json(const espalier_result* result, char** json,
                                                      espalier_error** error);
ESPALIER_API espalier_code espalier_result_trace_json(const espalier_result* result, char** json,
                                                      espalier_error** error);
ESPALIER_API void espalier_result_free(espalier_result* result);

// ---- requests that come and go ----

// Thread-safe, but for espalier_scheduler_step. Freed, it cancels what runs.
typedef struct espalier_scheduler espalier_scheduler;
// One submitted request. Thread-safe. Freed before its end, the request runs on to it.
typedef struct espalier_ticket espalier_ticket;

typedef struct espalier_scheduler_options {
  size_t size;
  int64_t kv_bytes;            // for keys and values of all running requests; 0: no limit
  int64_t prefix_cache_bytes;  // of this scheduler
  int64_t max_waiting;         // one more is ESPALIER_QUEUE_FULL; 0: no limit
  int64_t no_own_thread;       // 1: nothing is computed but in espalier_scheduler_step
} espalier_scheduler_options;

// `options` may be NULL.
ESPALIER_API espalier_code espalier_scheduler_new(const espalier_engine* engine,
                                                  const espalier_scheduler_options* options,
                                                  espalier_scheduler** scheduler, espalier_error** error);
// Returns at once: with a ticket, or with the reason why the request cannot be served. `callbacks` may be NULL.
ESPALIER_API espalier_code espalier_scheduler_submit(espalier_scheduler* scheduler, const espalier_request* request,
                                                     const espalier_callbacks* callbacks, espalier_ticket** ticket,
                                                     espalier_error** error);
// Several answers to one prompt, which is computed once: `samples` of them, 1 to 1024, with the seeds seed, seed + 1, …
// Each has a ticket in `tickets`, an array of so many, which are all NULL where it fails. Of the callbacks on_text and
// on_token must be NULL, since they do not say whose text it is: espalier_ticket_next does. on_end is called for each
// answer, and a 1 of should_cancel is for all of them.
ESPALIER_API espalier_code espalier_scheduler_submit_samples(espalier_scheduler* scheduler,
                                                             const espalier_request* request, size_t samples,
                                                             const espalier_callbacks* callbacks,
                                                             espalier_ticket** tickets, espalier_error** error);
// With no_own_thread: a layer for requests that came, a token for each that runs. *worked: 0 when there was nothing to
// do. One thread at a time.
ESPALIER_API espalier_code espalier_scheduler_step(espalier_scheduler* scheduler, int32_t* worked,
                                                   espalier_error** error);
// {"waiting", "running", "kv_bytes_promised", "kv_bytes_in_use", "prefix_hits", …} of now.
ESPALIER_API espalier_code espalier_scheduler_load_json(const espalier_scheduler* scheduler, char** json,
                                                        espalier_error** error);
ESPALIER_API void espalier_scheduler_free(espalier_scheduler* scheduler);

typedef enum espalier_next { ESPALIER_NEXT_TEXT = 0, ESPALIER_NEXT_END = 1, ESPALIER_NEXT_TIMEOUT = 2 } espalier_next;

// Waits up to `timeout_ms` for the next piece of the answer. *next says what came; *piece is NULL unless it is text,
// which the caller frees. `length` may be NULL.
ESPALIER_API espalier_code espalier_ticket_next(espalier_ticket* ticket, int64_t timeout_ms, espalier_next* next,
                                                char** piece, size_t* length, espalier_error** error);
// Takes effect within a layer; the result has what text there is.
ESPALIER_API void espalier_ticket_cancel(espalier_ticket* ticket);
ESPALIER_API int32_t espalier_ticket_is_done(const espalier_ticket* ticket);  // 1: espalier_ticket_result does not wait
// Waits for the end. May be asked again; each result is freed by itself.
ESPALIER_API espalier_code espalier_ticket_result(const espalier_ticket* ticket, espalier_result** result,
                                                  espalier_error** error);
ESPALIER_API void espalier_ticket_free(espalier_ticket* ticket);

// ---- conversations ----

// One thread at a time; several sessions of one engine run together.
typedef struct espalier_session espalier_session;

typedef struct espalier_session_options {
  size_t size;
  const char* policy;                             // NULL: "none"
  const espalier_generation_options* generation;  // NULL: all defaults
  const char* system;                             // what stands before the first turn; NULL: nothing
  int64_t sticky;                                 // 1: tokens that a turn dropped stay away in later turns
  const espalier_policy* custom;                  // a policy that was made, which then wins; NULL: `policy`
} espalier_session_options;

// `options` may be NULL.
ESPALIER_API espalier_code espalier_session_new(const espalier_engine* engine, const espalier_session_options* options,
                                                espalier_session** session, espalier_error** error);
// The user's next turn (a prompt of one turn) and the model's answer, which then belongs to the conversation. One that
// fails or is cancelled leaves the conversation as it was. `callbacks` may be NULL.
ESPALIER_API espalier_code espalier_session_ask(espalier_session* session, const espalier_prompt* turn,
                                                const espalier_callbacks* callbacks, espalier_result** result,
                                                espalier_error** error);
ESPALIER_API void espalier_session_free(espalier_session* session);

// ---- the command line ----

// What the program `espalier` does with these arguments, printing included; returns its exit status. One at a time in a
// process: Ctrl-C is caught while it runs, and frees of large blocks are kept for the next (memory.h).
ESPALIER_API int espalier_command_line(int argc, char** argv);

#ifdef __cplusplus
}
#endif
