#include "fail.h"

#include <cstdarg>
#include <cstdio>

namespace sonde {

namespace {
thread_local char sentence[512];
}

sonde_status fail(sonde_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    return status;
}

const char *last_failure() { return sentence; }

} // namespace sonde
