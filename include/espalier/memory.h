// SPDX-License-Identifier: Apache-2.0
// Memory of the process that links Espalier. Not part of any engine: what is set here holds for everything in it.
#pragma once

namespace espalier {

// Makes the C library keep large blocks that are freed, for the next ones, instead of returning them to the system.
// Every layer of a prefill frees and allocates the same tens of megabytes; as new pages of the system they cost time
// (for 3,000 tokens through a decoder of 500 M parameters about a tenth of the prefill). The process then stays as
// large as it has once been. The command line and the benchmarks of operators call it first; an application decides
// for itself.
//
// Holds from now on for blocks below 1 GiB, on the CPU: of the main thread, and of threads that begin later, which then
// share one store of free blocks. A thread that begins where another has ended may get that one's store, whose blocks
// above 64 MiB still come from the system: call it before the first thread. False, and nothing changed, where the C
// library is not glibc. Thread-safe.
bool keep_freed_memory();

}  // namespace espalier
