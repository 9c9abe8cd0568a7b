// Messages on the socket (ABI.md section 1): one sendmsg is one message, a header and a strict body.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <string>

#include "payload.h"
#include "ring.h"

namespace sonde {

constexpr int hello_descriptors = 3; // ctl, data, wake

// Reads a body front to back. The first failure sticks, so that a parser checks once at its end.
class BodyReader {
public:
    BodyReader(const uint8_t *at, size_t bytes) : at_(at), left_(bytes) {}

    template <class T>
    T take() {
        T value{};
        if (left_ < sizeof value) {
            bad_ = true;
            left_ = 0;
            return value;
        }
        std::memcpy(&value, at_, sizeof value);
        skip(sizeof value);
        return value;
    }
    std::string text() {
        const size_t n = take<uint16_t>();
        if (bad_ || n > left_ || n > SONDE_MAX_TEXT) {
            bad_ = true;
            return {};
        }
        std::string out(reinterpret_cast<const char *>(at_), n);
        skip(n);
        return out;
    }
    // Skips reserved bytes, which must be 0.
    void zero(size_t n) {
        for (; n > 0; n--) bad_ = take<uint8_t>() != 0 || bad_;
    }
    const uint8_t *at() const { return at_; }
    size_t left() const { return left_; }
    bool bad() const { return bad_; }
    // true: everything was read, and nothing failed.
    bool done() const { return !bad_ && left_ == 0; }

private:
    void skip(size_t n) {
        at_ += n;
        left_ -= n;
    }

    const uint8_t *at_;
    size_t left_;
    bool bad_ = false;
};

// Sends one message, without waiting, with up to three descriptors. 0, or an errno.
int send_message(int socket, uint16_t type, const Bytes &body, const int *fds, int fd_count);

// Receives one message, without waiting, into buffer, which has RING2_MESSAGE_MAX_BYTES. Returns its bytes, 0 at the
// end of file, or a negative errno. *fd_count descriptors came: the first three are in fds and the caller's, others are
// closed.
ssize_t receive_message(int socket, Bytes &buffer, std::array<int, hello_descriptors> &fds, int *fd_count);

// Checks the header of one whole message that came with so many descriptors. nullptr: it is good; else one sentence.
const char *check_message(const Bytes &buffer, size_t bytes, int fd_count, ring2_message *header);

} // namespace sonde
