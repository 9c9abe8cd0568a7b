#include "connection.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "message.h"
#include "writer.h"

namespace sonde {

namespace {

constexpr uint64_t ms = 1000000;
constexpr uint64_t first_backoff = 20 * ms, longest_backoff = 1000 * ms, refused_backoff = 5000 * ms;
constexpr uint64_t attach_timeout = 10000 * ms; // of one handshake
constexpr uint64_t unheard_after = 2000 * ms;   // of dialling, before it is said that nobody answers
constexpr uint64_t ack_timeout = 5000 * ms;
constexpr const char *library = "libsonde 1 (C++)"; // names this writer in HELLO, for people

} // namespace

Connection::Connection(sonde_writer &writer, std::string path, int stop_fd)
    : writer_(writer),
      path_(std::move(path)),
      stop_fd_(stop_fd),
      random_state_(writer.epoch()),
      in_(RING2_MESSAGE_MAX_BYTES) {}

uint64_t Connection::random() {
    random_state_ ^= random_state_ << 13;
    random_state_ ^= random_state_ >> 7;
    random_state_ ^= random_state_ << 17;
    return random_state_;
}

void Connection::run() {
    uint64_t backoff = first_backoff;
    const uint64_t start = monotonic_ns();
    for (bool met = false, told = false;;) {
        const End end = attach();
        if (fd_ >= 0) writer_.fork_guard().close_now(fd_);
        fd_ = -1;
        if (writer_.attached()) {
            writer_.set_attached(false);
            met = true;
            backoff = first_backoff;
            said_.clear();
            if (end == End::gone) writer_.log(SONDE_LOG_INFO, "agent is gone; capture goes on until the ring is full");
            if (end == End::failed)
                writer_.log(SONDE_LOG_WARN, ("connection to the agent failed: " + why_ +
                                             "; capture goes on until the ring "
                                             "is full")
                                                .c_str());
        }
        if (end == End::stopped) return;
        if (end == End::failed && !met && !told && monotonic_ns() - start >= unheard_after) {
            told = true; // once: an agent may come at any time
            writer_.log(SONDE_LOG_WARN, ("no agent answers at " + path_ + ": " + why_ +
                                         "; capture goes on until the ring is full, and it is dialled for ever")
                                            .c_str());
        }
        if (end == End::refused && why_ != said_) {
            said_ = why_;
            writer_.log(SONDE_LOG_WARN, ("agent refuses this engine: " + why_).c_str());
        }
        // Many ranks of many engines dial again when an agent restarts.
        if (nap(backoff / 2 + random() % (backoff / 2))) return;
        backoff = std::min(2 * backoff, longest_backoff);
        if (end == End::refused) backoff = std::min(4 * backoff, refused_backoff);
    }
}

// Sleeps. true: the writer stops, and the nap ended early.
bool Connection::nap(uint64_t ns) {
    pollfd stop{stop_fd_, POLLIN, 0};
    return poll(&stop, 1, static_cast<int>(ns / ms)) > 0;
}

Connection::End Connection::problem(const char *what) {
    why_ = what;
    return End::failed;
}

// Waits until the socket is ready, the writer stops, or the deadline passes.
Connection::End Connection::wait_for(short events) {
    for (;;) {
        int timeout = -1;
        if (deadline_ns_ != 0) {
            const uint64_t now = monotonic_ns();
            if (now >= deadline_ns_) return problem("the agent does not answer in time");
            timeout = static_cast<int>((deadline_ns_ - now) / ms + 1);
        }
        pollfd fds[2] = {{fd_, events, 0}, {stop_fd_, POLLIN, 0}};
        if (poll(fds, 2, timeout) < 0 && errno != EINTR) return problem(std::strerror(errno));
        if (fds[1].revents != 0) return End::stopped;
        if (fds[0].revents != 0) return End::ok; // ready: the next call says for what
    }
}

// Dials the agent and serves it until the connection ends.
Connection::End Connection::attach() {
    deadline_ns_ = monotonic_ns() + attach_timeout;
    if (End e = dial(); e != End::ok) return e;
    if (End e = shake_hands(); e != End::ok) return e;
    deadline_ns_ = 0;
    writer_.set_attached(true);
    return serve();
}

Connection::End Connection::dial() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path_.size() >= sizeof address.sun_path) return problem("the socket's path is too long");
    std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
    fd_ = writer_.fork_guard().open_socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd_ < 0) return problem(std::strerror(errno));
    const int room = RING2_MESSAGE_MAX_BYTES;
    (void)setsockopt(fd_, SOL_SOCKET, SO_SNDBUF, &room, sizeof room); // the default is larger already
    if (connect(fd_, reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0)
        return problem(std::strerror(errno));
    return End::ok;
}

Connection::End Connection::shake_hands() {
    out_.clear();
    put_text(out_, library);
    if (End e = send(RING2_MESSAGE_HELLO, out_, true); e != End::ok) return e;
    Message m;
    if (End e = receive(&m); e != End::ok)
        return e == End::gone ? problem("the agent closed the connection during the handshake") : e;
    BodyReader body(m.body, m.bytes);
    const std::string text = body.text();
    if (m.type == RING2_MESSAGE_REFUSE) {
        why_ = text;
        return End::refused;
    }
    if (m.type != RING2_MESSAGE_WELCOME || !body.done())
        return problem("the agent did not answer HELLO with a WELCOME");
    return send_snapshot();
}

Connection::End Connection::send_snapshot() {
    uint64_t release = 0;
    const std::vector<AlivePointer> alive = writer_.start_snapshot(&release);
    for (const AlivePointer &r : alive) {
        out_.clear();
        put(out_, r->seq);
        put(out_, r->kind);
        put_zero(out_, 6);
        out_.insert(out_.end(), r->payload.begin(), r->payload.end());
        if (End e = send(RING2_MESSAGE_SNAPSHOT_ITEM, out_, false); e != End::ok) return e;
    }
    out_.clear();
    put(out_, release);
    put(out_, static_cast<uint32_t>(alive.size()));
    put_zero(out_, 4);
    return send(RING2_MESSAGE_SNAPSHOT_END, out_, false);
}

Connection::End Connection::serve() {
    for (;;) {
        deadline_ns_ = 0;
        Message m;
        if (End e = receive(&m); e != End::ok) return e;
        if (End e = answer(m); e != End::ok) return e;
    }
}

Connection::End Connection::answer(const Message &m) {
    if (m.type != RING2_MESSAGE_ABORT) return problem("the agent sent something else than an abort");
    BodyReader body(m.body, m.bytes);
    const auto id = body.take<uint64_t>(), epoch = body.take<uint64_t>(), number = body.take<uint64_t>();
    const auto expires = body.take<uint64_t>();
    const auto sample = body.take<uint32_t>(), position = body.take<uint32_t>();
    const std::string engine_id = body.text();
    if (!body.done()) return problem("the agent sent an abort that does not parse");
    uint32_t final_length = 0;
    const sonde_abort_request request{number, sample, position, engine_id.c_str()};
    const uint8_t outcome = writer_.answer_abort(epoch, expires, request, &final_length);
    out_.clear();
    put(out_, id);
    put(out_, final_length);
    put(out_, outcome);
    put_zero(out_, 3);
    deadline_ns_ = monotonic_ns() + ack_timeout;
    return send(RING2_MESSAGE_ABORT_ACK, out_, false);
}

Connection::End Connection::send(uint16_t type, const Bytes &body, bool with_ring) {
    const RingMemory &memory = writer_.memory();
    const int fds[hello_descriptors] = {memory.ctl_fd(), memory.data_fd(), memory.wake_fd()};
    for (;;) {
        const int error = send_message(fd_, type, body, fds, with_ring ? hello_descriptors : 0);
        if (error == 0) return End::ok;
        if (error != EAGAIN && error != EINTR) return problem(std::strerror(error));
        if (End e = wait_for(POLLOUT); e != End::ok) return e;
    }
}

// Waits for a message of a known type.
Connection::End Connection::receive(Message *m) {
    for (bool known = false;;) {
        if (End e = wait_for(POLLIN); e != End::ok) return e;
        if (End e = receive_once(m, &known); e != End::ok || known) return e;
    }
}

Connection::End Connection::receive_once(Message *m, bool *known) {
    std::array<int, hello_descriptors> fds{};
    int fd_count = 0;
    const ssize_t n = receive_message(fd_, in_, fds, &fd_count);
    for (int i = 0; i < std::min(fd_count, hello_descriptors); i++) close(fds[static_cast<size_t>(i)]);
    *known = false;
    if (n == 0) return End::gone;
    if (n == -EAGAIN || n == -EINTR) return End::ok;
    if (n < 0) return problem(std::strerror(static_cast<int>(-n)));
    ring2_message header{};
    if (const char *wrong = check_message(in_, static_cast<size_t>(n), fd_count, &header); wrong != nullptr)
        return problem(wrong);
    // A later minor version may add types; this one skips them.
    *known = header.type >= RING2_MESSAGE_HELLO && header.type <= RING2_MESSAGE_ABORT_ACK;
    *m = Message{header.type, in_.data() + sizeof header, header.body_bytes};
    return End::ok;
}

} // namespace sonde
