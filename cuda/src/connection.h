// The writer's connection to the agent: dials for ever, hands over the ring and a snapshot, answers aborts. It runs on
// a thread of its own, and every wait in it ends when the writer stops.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct sonde_writer;

namespace sonde {

class Connection {
public:
    // stop_fd becomes readable once the thread must end.
    Connection(sonde_writer &writer, std::string path, int stop_fd);
    void run();

private:
    // How a part of a connection ended: as it should, because the writer stops, with the end of file, or badly.
    enum class End { ok, stopped, gone, failed, refused };

    struct Message {
        uint16_t type = 0;
        const uint8_t *body = nullptr;
        uint32_t bytes = 0;
    };

    End attach();
    End dial();
    End shake_hands();
    End send_snapshot();
    End serve();
    End answer(const Message &message);
    End send(uint16_t type, const std::vector<uint8_t> &body, bool with_ring);
    End receive(Message *message);
    End receive_once(Message *message, bool *known);
    End wait_for(short events);
    End problem(const char *what);
    bool nap(uint64_t ns);
    uint64_t random();

    sonde_writer &writer_;
    std::string path_;
    int stop_fd_, fd_ = -1;
    uint64_t deadline_ns_ = 0; // CLOCK_MONOTONIC of what is under way; 0: none
    uint64_t random_state_;
    std::vector<uint8_t> in_, out_;
    std::string why_, said_;
};

} // namespace sonde
