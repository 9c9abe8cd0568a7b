#include "agent.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <initializer_list>

#include "check.h"

namespace sonde {

Agent::Agent(std::string path) : path_(std::move(path)), in_(RING2_MESSAGE_MAX_BYTES) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    CHECK(path_.size() < sizeof address.sun_path);
    std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
    unlink(path_.c_str());
    listen_fd_ = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(bind(listen_fd_, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0);
    CHECK(listen(listen_fd_, 8) == 0);
}

Agent::~Agent() {
    disconnect();
    close(listen_fd_);
    unlink(path_.c_str());
}

void Agent::disconnect() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
    unmap();
}

void Agent::unmap() {
    core_.reset();
    if (ctl_ != nullptr) munmap(ctl_, ctl_bytes_);
    if (data_ != nullptr) munmap(data_, data_bytes_);
    ctl_ = data_ = nullptr;
    for (int &fd : fds_) {
        if (fd >= 0) close(fd);
        fd = -1;
    }
}

bool Agent::refuse(const std::string &why) {
    why_ = why;
    Bytes body;
    put_text(body, why);
    send_message(fd_, RING2_MESSAGE_REFUSE, body, nullptr, 0);
    disconnect();
    return false;
}

bool Agent::accept(int timeout_ms) {
    disconnect();
    snapshot_.clear();
    lost_ = 0;
    pollfd p{listen_fd_, POLLIN, 0};
    if (poll(&p, 1, timeout_ms) <= 0) return refuse("no engine came");
    fd_ = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC);
    ring2_message header{};
    if (!receive(&header, timeout_ms) || header.type != RING2_MESSAGE_HELLO) return refuse("no HELLO: " + why_);
    if (!map_ring()) return refuse(why_);
    Bytes body;
    put_text(body, "test agent");
    send_message(fd_, RING2_MESSAGE_WELCOME, body, nullptr, 0);
    uint64_t release = 0;
    if (!read_snapshot(&release)) return refuse("snapshot: " + why_);
    const Ring ring(ctl_, ctl_ + RING2_CONSUMER_OFF, data_, config_.desc_count, config_.data_bytes);
    core_ = std::make_unique<ReaderCore>(ring, release);
    return true;
}

bool Agent::receive(ring2_message *header, int timeout_ms) {
    pollfd p{fd_, POLLIN, 0};
    if (poll(&p, 1, timeout_ms) <= 0) return false;
    std::array<int, hello_descriptors> fds{-1, -1, -1};
    int fd_count = 0;
    const ssize_t n = receive_message(fd_, in_, fds, &fd_count);
    if (n <= 0) return false;
    if (const char *wrong = check_message(in_, static_cast<size_t>(n), fd_count, header); wrong != nullptr) {
        why_ = wrong;
        return false;
    }
    if (header->type == RING2_MESSAGE_HELLO) fds_ = fds;
    return true;
}

bool Agent::map_ring() {
    for (int i = 0; i < 2; i++) {
        constexpr int must = F_SEAL_SHRINK | F_SEAL_GROW;
        struct stat st{};
        const int fd = fds_[static_cast<size_t>(i)];
        if ((fcntl(fd, F_GET_SEALS) & must) != must || fstat(fd, &st) != 0) {
            why_ = "a memfd is not sealed";
            return false;
        }
        (i == 0 ? ctl_bytes_ : data_bytes_) = static_cast<uint64_t>(st.st_size);
    }
    // One writable mapping of all of ctl: this is a test's reader, which only writes zone 2.
    void *ctl = mmap(nullptr, ctl_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fds_[0], 0);
    void *data = mmap(nullptr, data_bytes_, PROT_READ, MAP_SHARED, fds_[1], 0);
    CHECK(ctl != MAP_FAILED && data != MAP_FAILED);
    ctl_ = static_cast<uint8_t *>(ctl);
    data_ = static_cast<uint8_t *>(data);
    const char *wrong = check_config(ctl_, ctl_bytes_, data_bytes_, &config_);
    if (wrong != nullptr) why_ = wrong;
    return wrong == nullptr;
}

bool Agent::read_snapshot(uint64_t *release) {
    for (;;) {
        ring2_message header{};
        if (!receive(&header, 5000)) return false;
        BodyReader body(in_.data() + sizeof header, header.body_bytes);
        if (header.type == RING2_MESSAGE_SNAPSHOT_END) {
            *release = body.take<uint64_t>();
            const auto items = body.take<uint32_t>();
            body.zero(4);
            return body.done() && items == snapshot_.size();
        }
        if (header.type != RING2_MESSAGE_SNAPSHOT_ITEM) return false;
        const auto seq = body.take<uint64_t>();
        const auto kind = body.take<uint16_t>();
        body.zero(6);
        if (body.bad()) return false;
        snapshot_.push_back(SnapshotItem{seq, kind, Bytes(body.at(), body.at() + body.left())});
    }
}

bool Agent::gone() {
    char byte = 0;
    return recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

Agent::Next Agent::next(Record *record, int timeout_ms) {
    for (const uint64_t start = monotonic_ns();;) {
        // Asked before the ring is read: what the engine published while it lived is then found.
        const bool was_gone = gone();
        switch (core_->poll(record)) {
        case ReaderCore::Poll::record: return Next::record;
        case ReaderCore::Poll::corrupt: why_ = core_->why_corrupt(); return Next::corrupt;
        case ReaderCore::Poll::nothing: break;
        }
        if (was_gone) {
            const uint64_t lost = core_->skip_lost();
            lost_ += lost;
            if (lost > 0) continue;
            return Next::end;
        }
        if (monotonic_ns() - start > static_cast<uint64_t>(timeout_ms) * 1000000U) return Next::timeout;
        core_->arm();
        if (!core_->ready()) {
            pollfd p[2] = {{fds_[2], POLLIN, 0}, {fd_, POLLIN, 0}};
            poll(p, 2, 50);
            uint64_t counter = 0;
            [[maybe_unused]] const ssize_t n = read(fds_[2], &counter, sizeof counter); // nonblocking
        }
        core_->disarm();
    }
}

uint8_t Agent::abort(uint64_t epoch, uint64_t number, uint64_t expires_wall_ns, const std::string &engine_id,
                     uint32_t *final_length) {
    constexpr uint64_t id = 77;
    Bytes body;
    for (const uint64_t v : {id, epoch, number, expires_wall_ns}) put(body, v);
    put(body, uint32_t{0});
    put(body, uint32_t{9});
    put_text(body, engine_id);
    CHECK_EQUAL(send_message(fd_, RING2_MESSAGE_ABORT, body, nullptr, 0), 0);
    ring2_message header{};
    if (!receive(&header, 5000) || header.type != RING2_MESSAGE_ABORT_ACK) return 255;
    BodyReader ack(in_.data() + sizeof header, header.body_bytes);
    CHECK_EQUAL(ack.take<uint64_t>(), id);
    *final_length = ack.take<uint32_t>();
    const auto outcome = ack.take<uint8_t>();
    ack.zero(3);
    return ack.done() ? outcome : uint8_t{255};
}

} // namespace sonde
