// Marks for AddressSanitizer: memory of the ring that nobody may touch now. In other builds they are nothing.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define SONDE_POISON(at, bytes) ASAN_POISON_MEMORY_REGION(at, bytes)
#define SONDE_UNPOISON(at, bytes) ASAN_UNPOISON_MEMORY_REGION(at, bytes)
#else
#define SONDE_POISON(at, bytes) ((void)(at), (void)(bytes))
#define SONDE_UNPOISON(at, bytes) ((void)(at), (void)(bytes))
#endif
