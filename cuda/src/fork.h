// What a forked child must not keep: an agent learns of a death by the end of a socket, and a child that held a copy of
// it would hide the death of its parent.
#pragma once

#include <cstdint>
#include <vector>

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
    // Make a socket, and open a file, that no child can inherit in between; -1 and errno on failure.
    int open_socket(int domain, int type);
    int open_file(const char *path, int flags);
    // Closes a descriptor and forgets it.
    void close_now(int fd);

private:
    friend void close_in_child();

    std::vector<int> fds_;
    ForkGuard *next_ = nullptr;
};

} // namespace sonde
