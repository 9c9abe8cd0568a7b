// A ring on the heap, where sanitizers see every access. With AddressSanitizer the memory behind each part is poisoned.
#pragma once

#include <cstdlib>
#include <cstring>
#include <string>

#include "../src/poison.h"
#include "../src/ring.h"
#include "check.h"

namespace sonde {

class HeapRing {
public:
    HeapRing(uint64_t descs, uint64_t bytes)
        : descs_(descs), bytes_(bytes), ctl_(allocate(ctl_bytes(descs) + tail)), data_(allocate(bytes + tail)) {
        SONDE_POISON(ctl_ + ctl_bytes(descs), tail);
        SONDE_POISON(data_ + bytes, tail);
    }
    ~HeapRing() {
        SONDE_UNPOISON(ctl_, ctl_bytes(descs_) + tail);
        SONDE_UNPOISON(data_, bytes_ + tail);
        std::free(ctl_);
        std::free(data_);
    }
    HeapRing(const HeapRing &) = delete;
    HeapRing &operator=(const HeapRing &) = delete;

    uint8_t *ctl() { return ctl_; }
    Ring ring() { return {ctl_, ctl_ + RING2_CONSUMER_OFF, data_, descs_, bytes_}; }
    // A payload's memory.
    uint8_t *writable(uint64_t pos, uint64_t bytes) {
        CHECK((pos & (bytes_ - 1)) + bytes <= bytes_);
        return data_ + (pos & (bytes_ - 1));
    }

    // The parts of the ring, one after the other, as ABI.md says of an image.
    std::string image() const {
        std::string out;
        each_part([&](uint8_t *at, size_t n) { out.append(reinterpret_cast<const char *>(at), n); });
        return out;
    }
    void load(const std::string &image) {
        const char *from = image.data();
        each_part([&](uint8_t *at, size_t n) {
            std::memcpy(at, from, n);
            from += n;
        });
        CHECK(from == image.data() + image.size());
    }

private:
    static constexpr size_t tail = 4096;

    static uint8_t *allocate(size_t bytes) {
        void *p = std::aligned_alloc(64, align_up(bytes));
        CHECK(p != nullptr);
        std::memset(p, 0, align_up(bytes));
        return static_cast<uint8_t *>(p);
    }
    template <class Part>
    void each_part(Part part) const {
        part(ctl_ + RING2_CONFIG_OFF, sizeof(ring2_config));
        part(ctl_ + RING2_PRODUCER_OFF, sizeof(ring2_producer));
        part(ctl_ + RING2_CONSUMER_OFF, sizeof(ring2_consumer));
        part(ctl_ + RING2_DESC_OFF, descs_ * sizeof(ring2_desc));
        part(data_, bytes_);
    }

    uint64_t descs_, bytes_;
    uint8_t *ctl_, *data_;
};

} // namespace sonde
