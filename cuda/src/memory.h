// The writer's end of a ring: two sealed memfds, mapped, and the eventfd that wakes the reader.
#pragma once

#include <cstdint>

#include "../sonde.h"

namespace sonde {

class RingMemory {
public:
    RingMemory() = default;
    RingMemory(const RingMemory &) = delete;
    RingMemory &operator=(const RingMemory &) = delete;
    ~RingMemory();

    // Makes both memories. They are zero, their size is final, and a forked child does not inherit the mappings.
    sonde_status make(uint64_t desc_count, uint64_t data_bytes);
    // Ends the reader's wait. A full counter means that it is awake already.
    void wake() const;
    // Makes the memory of a piece of the data exist. false: this system cannot, or has no memory left.
    bool populate(uint64_t offset, uint64_t bytes) const;

    uint8_t *ctl() const { return ctl_; }
    uint8_t *data() const { return data_; }
    uint64_t data_bytes() const { return data_bytes_; }
    int ctl_fd() const { return ctl_fd_; }
    int data_fd() const { return data_fd_; }
    int wake_fd() const { return wake_fd_; }

private:
    uint8_t *ctl_ = nullptr, *data_ = nullptr;
    uint64_t ctl_bytes_ = 0, data_bytes_ = 0;
    int ctl_fd_ = -1, data_fd_ = -1, wake_fd_ = -1;
};

} // namespace sonde
