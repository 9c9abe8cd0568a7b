// Threads of the library inside somebody else's process: they take no signals, which belong to the process, and have a
// name.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <thread>
#include <utility>

namespace sonde {

template <class Function>
std::thread start_background(const char *name, Function function) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); // the new thread inherits it
    struct Restore {
        const sigset_t *mask;
        ~Restore() { pthread_sigmask(SIG_SETMASK, mask, nullptr); }
    } const restore{&before};
    std::thread started(std::move(function));
    pthread_setname_np(started.native_handle(), name); // for people; at most 15 letters
    return started;
}

} // namespace sonde
