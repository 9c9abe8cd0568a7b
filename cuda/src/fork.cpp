#include "fork.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <mutex>

namespace sonde {

namespace {

std::mutex guards_lock; // of the list below; held over fork, so that a child finds the list whole
ForkGuard *guards = nullptr;
std::atomic<uint64_t> generation{1};
std::once_flag installed;

void lock_before_fork() { guards_lock.lock(); }
void unlock_in_parent() { guards_lock.unlock(); }

} // namespace

void close_in_child() {
    generation.fetch_add(1);
    for (ForkGuard *g = guards; g != nullptr; g = g->next_) {
        for (int fd : g->fds_) close(fd);
    }
    guards = nullptr;
    guards_lock.unlock();
}

uint64_t fork_generation() { return generation.load(std::memory_order_relaxed); }

ForkGuard::ForkGuard() {
    // It fails only without memory; then children are not protected, and nothing else is wrong.
    std::call_once(installed, [] { (void)pthread_atfork(lock_before_fork, unlock_in_parent, close_in_child); });
    const std::lock_guard<std::mutex> hold(guards_lock);
    next_ = guards;
    guards = this;
}

ForkGuard::~ForkGuard() {
    const std::lock_guard<std::mutex> hold(guards_lock);
    for (ForkGuard **at = &guards; *at != nullptr; at = &(*at)->next_) {
        if (*at != this) continue;
        *at = next_;
        return;
    }
}

void ForkGuard::add(int fd) {
    const std::lock_guard<std::mutex> hold(guards_lock);
    fds_.push_back(fd);
}

int ForkGuard::open_socket(int domain, int type) {
    const std::lock_guard<std::mutex> hold(guards_lock);
    fds_.reserve(fds_.size() + 1); // what can run out of memory comes first
    const int fd = socket(domain, type, 0);
    if (fd >= 0) fds_.push_back(fd);
    return fd;
}

int ForkGuard::open_file(const char *path, int flags) {
    const std::lock_guard<std::mutex> hold(guards_lock);
    fds_.reserve(fds_.size() + 1);
    const int fd = open(path, flags, 0600);
    if (fd >= 0) fds_.push_back(fd);
    return fd;
}

void ForkGuard::close_now(int fd) {
    const std::lock_guard<std::mutex> hold(guards_lock);
    std::erase(fds_, fd);
    close(fd);
}

} // namespace sonde
