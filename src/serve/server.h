// SPDX-License-Identifier: Apache-2.0
// The engine behind the protocol that clients already speak: OpenAI's chat and text completions over HTTP, with pruning
// as a field of a request. Everything it does, it does with Espalier's public headers.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "espalier/engine.h"
#include "serve/options.h"

namespace espalier::serve {

class Server {
 public:
  // Listens from now on and says that it is not ready. Throws Error for options that do not go together, files that
  // cannot be read, an address that cannot be had.
  explicit Server(const ServeOptions& options);
  // As stop(), without patience.
  ~Server();

  // From now on requests are answered. The engine must outlive the server. Throws Error for a policy that does not
  // exist.
  void open(const Engine& engine);
  uint16_t port() const;

  // Takes no new requests; those that run may end within `grace`, the others are then cancelled. False when there were
  // others.
  bool stop(std::chrono::milliseconds grace);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier::serve
