// Agents that obey no rule. Whatever they send or write, the engine goes on, answers the next honest agent, and never
// writes outside its ring.

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "agent.h"
#include "check.h"
#include "rows.h"

using namespace sonde;

namespace {

std::string socket_path() {
    static int n = 0;
    return "/tmp/sonde-hostile-" + std::to_string(getpid()) + "-" + std::to_string(n++);
}

struct Engine {
    explicit Engine(const std::string &path) {
        sonde_writer_options o{};
        o.struct_bytes = sizeof o;
        o.socket = path.c_str();
        o.desc_count = 64;
        o.data_bytes = 256U << 10;
        CHECK_EQUAL(sonde_writer_open(&o, &writer), SONDE_OK);
        const std::vector<sonde_layout_entry> entries = row_layout();
        CHECK_EQUAL(sonde_define_layout(writer, entries.data(), row_entry_count, &layout), SONDE_OK);
    }
    ~Engine() { sonde_writer_free(writer); }
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    void step(uint32_t position) const {
        const sonde_range range{1, position, 2, 0, SONDE_DECODE, 0, 0, 1};
        CHECK_EQUAL(sonde_begin_step(writer, &range, 1, &layout, 1, nullptr, 0, nullptr), SONDE_OK);
        for (uint32_t e = 0; e < row_entry_count; e++) {
            auto *span = static_cast<uint8_t *>(sonde_step_span(writer, 0, e, nullptr));
            if (span != nullptr) fill_rows(span, &range, 1, 0, e);
        }
        CHECK_EQUAL(sonde_commit_step(writer), SONDE_OK);
    }

    sonde_writer *writer = nullptr;
    uint32_t layout = 0;
};

// Listens, takes the connection's HELLO, and does something wrong.
void misbehave_once(const std::string &path, const std::function<void(int)> &misbehave) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    unlink(path.c_str());
    const int listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(bind(listening, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0 && listen(listening, 1) == 0);
    const int fd = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
    CHECK(fd >= 0);
    misbehave(fd);
    close(fd);
    close(listening);
    unlink(path.c_str());
}

void send_raw(int fd, const Bytes &b) { [[maybe_unused]] const ssize_t n = send(fd, b.data(), b.size(), MSG_NOSIGNAL); }

void welcome(int fd) {
    Bytes body;
    put_text(body, "hostile");
    send_message(fd, RING2_MESSAGE_WELCOME, body, nullptr, 0);
}

Bytes random_bytes(std::mt19937_64 &random, size_t n) {
    Bytes b(n);
    for (uint8_t &byte : b) byte = static_cast<uint8_t>(random());
    return b;
}

void the_engine_survives_whatever_an_agent_sends() {
    std::mt19937_64 random = seeded_random();
    const std::string path = socket_path();
    const Engine engine(path);
    const std::function<void(int)> attacks[] = {
        [](int) {}, // hangs up at once
        [&](int fd) { send_raw(fd, random_bytes(random, 64)); },
        [&](int fd) { send_raw(fd, random_bytes(random, 3)); },
        [](int fd) { welcome(fd), welcome(fd); }, // twice
        [](int fd) { send_message(fd, RING2_MESSAGE_WELCOME, Bytes{0xff, 0xff}, nullptr, 0); },
        [](int fd) { send_message(fd, RING2_MESSAGE_REFUSE, Bytes{0xff, 0x0f, 'x'}, nullptr, 0); },
        [](int fd) { send_message(fd, RING2_MESSAGE_WELCOME, Bytes(100000), nullptr, 0); },
        [](int fd) { // descriptors that nobody wants
            const int gift[] = {0, 1, 2};
            Bytes body;
            put_text(body, "x");
            send_message(fd, RING2_MESSAGE_WELCOME, body, gift, 3);
        },
        [&](int fd) {
            welcome(fd);
            send_message(fd, RING2_MESSAGE_ABORT, random_bytes(random, 40), nullptr, 0);
        },
        [](int fd) { // a type of a later version, then an abort that is too short
            welcome(fd);
            send_message(fd, 900, Bytes(10), nullptr, 0);
            send_message(fd, RING2_MESSAGE_ABORT, Bytes(4), nullptr, 0);
        },
        [](int fd) { // leaves the ring's descriptors and reads nothing
            welcome(fd);
            sleep_ns(50000000);
        },
    };
    uint32_t position = 0;
    for (const auto &attack : attacks) {
        misbehave_once(path, attack);
        for (int i = 0; i < 20; i++) engine.step(position++);
    }
    Agent agent(path);
    CHECK(agent.accept(10000));
    Record r;
    CHECK(agent.next(&r, 1000) == Agent::Next::record);
}

// An agent that scribbles over everything it can map, the reader's zone above all: the engine's own memory stays whole
// (AddressSanitizer watches), and it takes its release word back at the next attachment.
void the_engine_survives_an_agent_that_writes_into_the_ring() {
    std::mt19937_64 random = seeded_random();
    const std::string path = socket_path();
    auto agent = std::make_unique<Agent>(path);
    const Engine engine(path);
    CHECK(agent->accept(5000));
    const Ring ring = agent->core().ring();
    for (uint32_t i = 0; i < 2000; i++) {
        engine.step(i);
        shared(ring.consumer->release_seq).store(random() % 2 != 0 ? random() : random() % 4096);
        shared(ring.consumer->need_wakeup).store(static_cast<uint32_t>(random() % 3));
        shared(ring.desc(random()).commit).store(random());
        shared(ring.producer->claim_seq).store(random());
        shared(ring.config->data_bytes).store(random());
    }
    sonde_stats s{};
    CHECK_EQUAL(sonde_writer_stats(engine.writer, &s), SONDE_OK);
    CHECK(s.refused_releases > 0);
    CHECK_EQUAL(s.steps, 2000);
    CHECK(s.release <= s.claim);
}

} // namespace

int main() {
    std::printf("hostile_test\n");
    RUN(the_engine_survives_whatever_an_agent_sends);
    RUN(the_engine_survives_an_agent_that_writes_into_the_ring);
}
