// Errors of the library: a status, and one sentence kept for the calling thread.
#pragma once

#include "../sonde.h"

namespace sonde {

// Notes what failed and returns status. The sentence is cut at 511 bytes; nothing is allocated.
__attribute__((format(printf, 2, 3))) sonde_status fail(sonde_status status, const char *format, ...);

// What fail noted last on this thread, "" when nothing.
const char *last_failure();

} // namespace sonde
