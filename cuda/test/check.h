// The few words that test programs share: a check that ends the program, a test that is named, random numbers with a
// seed that is printed.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #condition);                         \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (false)

#define CHECK_EQUAL(got, want)                                                                                         \
    do {                                                                                                               \
        const auto got_value = static_cast<long long>(got), want_value = static_cast<long long>(want);                 \
        if (got_value != want_value) {                                                                                 \
            std::fprintf(stderr, "%s:%d: %s is %lld, want %lld\n", __FILE__, __LINE__, #got, got_value, want_value);   \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (false)

// Calls one test and says so.
#define RUN(test)                                                                                                      \
    do {                                                                                                               \
        std::printf("  %s\n", #test);                                                                                  \
        std::fflush(stdout);                                                                                           \
        test();                                                                                                        \
    } while (false)

// Seeded from the environment variable SEED, or at random; prints the seed.
inline std::mt19937_64 seeded_random() {
    const char *given = std::getenv("SEED");
    const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
    std::printf("    SEED=%llu\n", static_cast<unsigned long long>(seed));
    return std::mt19937_64(seed);
}
