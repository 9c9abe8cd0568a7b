// Agent is the test's end of the socket: it accepts one engine at a time, maps its ring and reads it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../src/message.h"
#include "reader.h"

namespace sonde {

struct SnapshotItem {
    uint64_t seq;
    uint16_t kind;
    Bytes payload;
};

class Agent {
public:
    enum class Next { record, timeout, end, corrupt };

    explicit Agent(std::string path);
    ~Agent();
    Agent(const Agent &) = delete;
    Agent &operator=(const Agent &) = delete;

    // Waits for an engine and takes its ring. false: none came in time, or it is of no use; why() says so.
    bool accept(int timeout_ms);
    // The next record; end: the engine is gone and everything it published was read.
    Next next(Record *record, int timeout_ms);
    void release(uint64_t seq) { core_->set_release(seq); }
    // Asks to stop a sequence and waits for the answer, 255 when none comes.
    uint8_t abort(uint64_t epoch, uint64_t number, uint64_t expires_wall_ns, const std::string &engine_id,
                  uint32_t *final_length);
    // Ends the connection, as an agent does that dies.
    void disconnect();

    const std::vector<SnapshotItem> &snapshot() const { return snapshot_; }
    const ring2_config &config() const { return config_; }
    ReaderCore &core() { return *core_; }
    uint64_t lost() const { return lost_; }
    const std::string &why() const { return why_; }
    int socket() const { return fd_; }

private:
    bool receive(ring2_message *header, int timeout_ms);
    bool map_ring();
    bool read_snapshot(uint64_t *release);
    bool gone();
    bool refuse(const std::string &why);
    void unmap();

    std::string path_, why_;
    int listen_fd_ = -1, fd_ = -1;
    std::array<int, hello_descriptors> fds_{-1, -1, -1};
    Bytes in_;
    ring2_config config_{};
    uint8_t *ctl_ = nullptr, *data_ = nullptr;
    uint64_t ctl_bytes_ = 0, data_bytes_ = 0, lost_ = 0;
    std::vector<SnapshotItem> snapshot_;
    std::unique_ptr<ReaderCore> core_;
};

} // namespace sonde
