// SPDX-License-Identifier: Apache-2.0
#include "cli/interrupt.h"

#include <csignal>

namespace espalier::cli {

namespace {

volatile std::sig_atomic_t g_interrupted = 0;  // its number; what a signal handler may write

void note_interrupt(int signal) {
  g_interrupted = signal;
}

void catch_signal(int signal) {
  struct sigaction action {};
  action.sa_handler = note_interrupt;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);  // the second signal meets the default action
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, nullptr);
}

}  // namespace

void catch_interrupts() {
  catch_signal(SIGINT);
}

void catch_stops() {
  catch_signal(SIGINT);
  catch_signal(SIGTERM);
}

bool interrupted() {
  return g_interrupted != 0;
}

bool stopped_by_manager() {
  return g_interrupted == SIGTERM;
}

}  // namespace espalier::cli
