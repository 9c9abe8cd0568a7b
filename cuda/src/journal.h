// The journal of a writer (ABI.md section 12): a folder of segments, to which each control record is appended with one
// plain write before it goes into the ring. That outlives a SIGKILL of the process, and needs no fsync, because after a
// crash of the machine the ring and its reader are gone, too. A segment starts with what was alive when it began, so
// that older ones can go once the reader has released all that they tell of.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "alive.h"
#include "fork.h"

namespace sonde {

constexpr char journal_magic[] = "R2JL";
constexpr uint32_t journal_version = 1;
constexpr uint16_t obituary_never_put = 1, obituary_first = 2;
constexpr uint32_t max_obituary_payload = 8 + 2 + SONDE_MAX_STEP_LAYOUTS * 16 + 4 + SONDE_MAX_STEP_RANGES * 52;

struct [[gnu::packed]] JournalHeader {
    char magic[4];
    uint32_t version;
    uint64_t epoch;
    uint32_t rank;
    uint32_t crc32c; // of the 20 bytes before it
};
static_assert(sizeof(JournalHeader) == 24);

struct [[gnu::packed]] JournalRecord {
    uint32_t payload_bytes;
    uint32_t crc32c; // of what follows it, the payload included
    uint64_t ordinal, seq;
    uint16_t kind, flags;
};
static_assert(sizeof(JournalRecord) == 28);

JournalHeader journal_header(uint64_t epoch, uint32_t rank);
JournalRecord journal_record(uint64_t ordinal, uint64_t seq, uint16_t kind, uint16_t flags, const uint8_t *payload,
                             size_t bytes);
uint32_t checksum(const JournalHeader &header);
uint32_t checksum(const JournalRecord &record, const uint8_t *payload);
std::string journal_folder(const std::string &dir, uint32_t rank, uint64_t epoch);
std::string segment_path(const std::string &folder, uint32_t number);

// A segment that was begun: an open file and what it holds.
struct NewSegment {
    int fd = -1;
    uint64_t bytes = 0;
    std::string path;
};

// It belongs to whoever holds the writer's lock.
class Journal {
public:
    static constexpr uint64_t segment_bytes = 4U << 20; // then a new one begins, once it is twice what is alive
    static constexpr uint64_t max_bytes = 256U << 20;   // of an epoch; then records are counted and not journalled

    Journal(ForkGuard &guard, const std::string &dir, uint64_t epoch, uint32_t rank);
    ~Journal(); // leaves it to the next writer
    Journal(const Journal &) = delete;
    Journal &operator=(const Journal &) = delete;

    // Makes and locks the folder, and begins the first segment. SONDE_SYSTEM.
    sonde_status open();
    // Names the next record.
    uint64_t next_ordinal() { return ++last_; }
    // Writes one record. What cannot be written is counted: the journal never stands in the way of the engine.
    void append(uint64_t ordinal, uint64_t seq, uint16_t kind, uint16_t flags, const uint8_t *payload, size_t bytes);
    // Says that a new segment should begin.
    bool full(uint64_t alive_bytes) const;
    // Makes the file of the next segment with what is alive in it. It may run without the lock: it touches nothing that
    // append does. SONDE_SYSTEM.
    sonde_status next_segment(const std::vector<AlivePointer> &alive, NewSegment *made);
    void begin(NewSegment &&segment);
    // Notes that nothing waits for room, so that releasing the claim releases all that old segments tell of, and
    // returns the files that may go.
    std::vector<std::string> settle(bool empty, uint64_t release, uint64_t claim);
    // Removes it: the reader has seen everything.
    void remove();

    uint64_t bytes() const { return bytes_; }
    uint64_t unnamed() const { return unnamed_; } // records that were not taken

private:
    struct Sealed {
        std::string path;
        uint64_t bytes = 0;
        uint64_t need = 0; // what the reader must have released, once that is known
        bool known = false;
    };

    void seal();

    ForkGuard &guard_;
    std::string folder_;
    uint64_t epoch_;
    uint32_t rank_;
    int lock_ = -1;  // the folder, locked while we live
    NewSegment now_; // fd -1 after a failed write
    uint32_t number_ = 0;
    std::deque<Sealed> old_;
    uint64_t bytes_ = 0; // of all segments
    uint64_t unnamed_ = 0, last_ = 0;
};

} // namespace sonde
