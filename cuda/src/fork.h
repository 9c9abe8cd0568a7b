// What a forked child must not keep: an agent learns of a death by the end of a socket, and a child that held a copy of
// it would hide the death of its parent.
#pragma once

#include <array>
#include <cstdint>

namespace sonde {

// Grows by one in each forked child. A writer that was opened under another number belongs to another process.
uint64_t fork_generation();

// The descriptors of one writer, closed in every forked child.
class ForkGuard {
public:
    ForkGuard();
    ~ForkGuard();
    ForkGuard(const ForkGuard &) = delete;
    ForkGuard &operator=(const ForkGuard &) = delete;

    void add(int fd);
    // Makes a socket that no child can inherit in between; -1 and errno on failure.
    int open_socket(int domain, int type);
    // Closes a descriptor and forgets it.
    void close_now(int fd);

private:
    friend void close_in_child();
    void remember(int fd);

    std::array<int, 8> fds_;
    ForkGuard *next_ = nullptr;
};

} // namespace sonde
