// The journals of writers that died, told one after the other by their successor.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "journal.h"

namespace sonde {

// One control record of a dead epoch; kind 0 ends the epoch.
struct Obituary {
    uint64_t dead_epoch = 0, seq = 0;
    uint16_t kind = 0, flags = 0;
    Bytes payload;
};

void encode_obituary(Bytes &b, const Obituary &obituary);

// Reads a file front to back, with a buffer.
class FileReader {
public:
    explicit FileReader(ForkGuard &guard) : guard_(guard) {}
    ~FileReader() { close(); }
    FileReader(const FileReader &) = delete;
    FileReader &operator=(const FileReader &) = delete;

    bool open(const std::string &path); // false, and errno
    void close();
    bool is_open() const { return fd_ >= 0; }
    // Reads exactly so many bytes and returns how many there were.
    size_t read(void *to, size_t bytes);

private:
    ForkGuard &guard_;
    int fd_ = -1;
    Bytes buffer_;
    size_t at_ = 0, end_ = 0;
};

using JournalLog = std::function<void(const std::string &)>;

// The journal of a dead epoch.
class DeadJournal {
public:
    DeadJournal(ForkGuard &guard, const JournalLog &log, std::string folder, int lock);
    ~DeadJournal();
    DeadJournal(const DeadJournal &) = delete;
    DeadJournal &operator=(const DeadJournal &) = delete;

    // Gives the next obituary, the last one of kind 0. false: the journal does not even say its epoch.
    bool next(Obituary *out);
    // Begins anew.
    void rewind();
    void remove();
    bool ended() const { return ended_; }
    const std::string &folder() const { return folder_; }

    bool begun = false;   // its first obituary is in our ring
    uint64_t end_seq = 0; // in our ring, of the record that ends it

private:
    struct Record {
        JournalRecord header;
        Bytes payload;
    };

    void survey();
    bool next_record(Record *out);
    const char *open_segment(const std::string &path);
    const char *read_record(Record *out, bool *end);

    ForkGuard &guard_;
    const JournalLog &log_;
    std::string folder_;
    int lock_;
    std::vector<std::string> segments_;
    bool opened_ = false, ended_ = false;
    size_t at_ = 0; // segment
    FileReader file_;
    uint64_t epoch_ = 0;
    std::unordered_set<uint64_t> voided_; // ordinals of flagged records that got into the ring after all
    std::unordered_set<uint64_t> sent_;   // ordinals of flagged records that were told
    bool any_ = false;                    // last_seq_ is known
    uint64_t last_seq_ = 0;               // told last, of records that were in the ring
    bool any_end_ = false;
    uint64_t ends_at_ = 0; // one past the last record or capture
    Record record_;
};

// It belongs to the writer's background.
class DeadQueue {
public:
    static constexpr size_t max_dead = 64; // of earlier epochs; the oldest are removed untold

    DeadQueue(ForkGuard &guard, JournalLog log) : guard_(guard), log_(std::move(log)) {}

    // Finds the journals of dead writers of a rank, oldest first. SONDE_SYSTEM.
    sonde_status collect(const std::string &dir, uint32_t rank);
    // Takes over the journals of writers that are dead by now. One that is being killed may let go of its socket before
    // it lets go of its lock.
    void take_over();
    // Reads up to n obituaries ahead and says whether there are any.
    bool ahead(size_t n);
    // The next obituary, which ahead has read. Its first one of a telling is flagged so.
    Obituary &front();
    // Notes that it was put into the ring, or passed over.
    void sent(uint64_t seq, bool put);
    bool empty() const { return next_.empty(); }
    // Begins anew with every journal whose end was not released: the reader before may have got only a part of it to
    // the bus, and what it knew is gone.
    void retell();
    // Removes the journals that the reader is done with.
    void released(uint64_t release, uint64_t claim);

private:
    using Pointer = std::unique_ptr<DeadJournal>;

    ForkGuard &guard_;
    JournalLog log_;
    std::deque<Pointer> dead_;       // not told to the end, oldest first
    std::deque<Pointer> told_;       // told, but not released
    std::deque<Obituary> next_;      // read ahead, of the first of dead_
    std::vector<std::string> alive_; // folders of writers that were not dead when last tried
};

} // namespace sonde
