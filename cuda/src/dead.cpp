#include "dead.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fail.h"
#include "folder.h"
#include "message.h"

namespace sonde {

namespace {

// The sequence number after the last capture that a STEP announces. A payload that does not parse, or announces what no
// ring can hold, has no captures: whoever expands it will say what is wrong.
uint64_t step_end(const Bytes &payload, uint64_t seq) {
    constexpr uint64_t most_descs = 1U << 20;
    BodyReader b(payload.data(), payload.size());
    b.take<uint64_t>();
    uint64_t end = seq + 1;
    for (uint16_t n = b.take<uint16_t>(); n > 0 && !b.bad(); n--) {
        b.take<uint32_t>();
        const auto outcome = b.take<uint8_t>();
        for (int skipped = 0; skipped < 3; skipped++) b.take<uint8_t>();
        const auto capture = b.take<uint64_t>();
        if (!b.bad() && outcome == SONDE_CAPTURED && capture - seq > end - seq - 1 && capture - seq < most_descs)
            end = capture + 1;
    }
    return end;
}

int64_t modified_ns(const std::string &path) {
    struct stat s{};
    if (stat(path.c_str(), &s) != 0) return 0;
    return s.st_mtim.tv_sec * 1000000000 + s.st_mtim.tv_nsec;
}

} // namespace

void encode_obituary(Bytes &b, const Obituary &o) {
    b.clear();
    put(b, o.dead_epoch);
    put(b, o.seq);
    put(b, o.kind);
    put(b, o.flags);
    b.insert(b.end(), o.payload.begin(), o.payload.end());
}

bool FileReader::open(const std::string &path) {
    buffer_.resize(1U << 16);
    at_ = end_ = 0;
    fd_ = guard_.open_file(path.c_str(), O_RDONLY | O_CLOEXEC);
    return fd_ >= 0;
}

void FileReader::close() {
    if (fd_ >= 0) guard_.close_now(fd_);
    fd_ = -1;
}

size_t FileReader::read(void *to, size_t bytes) {
    size_t done = 0;
    while (done < bytes) {
        if (at_ == end_) {
            const ssize_t n = ::read(fd_, buffer_.data(), buffer_.size());
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) break;
            at_ = 0;
            end_ = static_cast<size_t>(n);
        }
        const size_t n = std::min(bytes - done, end_ - at_);
        std::memcpy(static_cast<uint8_t *>(to) + done, buffer_.data() + at_, n);
        at_ += n;
        done += n;
    }
    return done;
}

DeadJournal::DeadJournal(ForkGuard &guard, const JournalLog &log, std::string folder, int lock)
    : guard_(guard), log_(log), folder_(std::move(folder)), lock_(lock), file_(guard) {
    if (!list_folder(folder_, "", &segments_))
        log_("journal " + folder_ + " of a dead writer cannot be read: " + std::strerror(errno));
}

DeadJournal::~DeadJournal() { guard_.close_now(lock_); }

void DeadJournal::rewind() {
    file_.close();
    at_ = 0;
    opened_ = begun = any_ = any_end_ = ended_ = false;
    ends_at_ = 0;
}

void DeadJournal::remove() {
    file_.close();
    if (!remove_folder(folder_)) log_("journal " + folder_ + " of a dead writer stays and will be told again");
}

bool DeadJournal::next(Obituary *out) {
    if (!opened_) {
        opened_ = true;
        survey();
    }
    if (epoch_ == 0) return false;
    while (next_record(&record_)) {
        const JournalRecord &r = record_.header;
        if ((r.flags & obituary_never_put) != 0) {
            if (voided_.contains(r.ordinal) || !sent_.insert(r.ordinal).second) continue;
        } else {
            // An older segment may have told it already.
            if (any_ && static_cast<int64_t>(r.seq - last_seq_) <= 0) continue;
            any_ = true;
            last_seq_ = r.seq;
        }
        *out = Obituary{epoch_, r.seq, r.kind, r.flags, record_.payload};
        return true;
    }
    ended_ = true;
    *out = Obituary{epoch_, ends_at_, 0, 0, {}};
    return true;
}

// Reads the journal once for what must be known before it is told.
void DeadJournal::survey() {
    voided_.clear();
    sent_.clear();
    std::unordered_set<uint64_t> flagged;
    while (next_record(&record_)) {
        const JournalRecord &r = record_.header;
        if ((r.flags & obituary_never_put) != 0) {
            flagged.insert(r.ordinal);
            continue;
        }
        if (flagged.contains(r.ordinal)) voided_.insert(r.ordinal);
        const uint64_t end = r.kind == RING2_KIND_STEP ? step_end(record_.payload, r.seq) : r.seq + 1;
        if (!any_end_ || static_cast<int64_t>(end - ends_at_) > 0) ends_at_ = end;
        any_end_ = true;
    }
    at_ = 0;
}

// Reads the next record of any segment. A segment ends at the first byte that makes no sense: the writer died while it
// wrote.
bool DeadJournal::next_record(Record *out) {
    for (; at_ < segments_.size(); at_++) {
        bool end = false;
        const char *wrong = file_.is_open() ? nullptr : open_segment(segments_[at_]);
        if (wrong == nullptr) wrong = read_record(out, &end);
        if (wrong == nullptr && !end) return true;
        if (wrong != nullptr) log_("segment " + segments_[at_] + " of a dead writer's journal ends early: " + wrong);
        file_.close();
    }
    return false;
}

const char *DeadJournal::open_segment(const std::string &path) {
    if (!file_.open(path)) return std::strerror(errno);
    JournalHeader h{};
    if (file_.read(&h, sizeof h) != sizeof h) return "it is shorter than its header";
    if (std::memcmp(h.magic, journal_magic, sizeof h.magic) != 0 || h.version != journal_version || h.epoch == 0 ||
        h.crc32c != checksum(h))
        return "it is not a journal of version 1";
    if (epoch_ != 0 && epoch_ != h.epoch) return "it is of another epoch";
    epoch_ = h.epoch;
    return nullptr;
}

// Reads one record; *end: there is none. nullptr, or what is wrong.
const char *DeadJournal::read_record(Record *out, bool *end) {
    const size_t n = file_.read(&out->header, sizeof out->header);
    *end = n == 0;
    if (n == 0) return nullptr;
    if (n != sizeof out->header) return "it ends inside of a record";
    if (out->header.payload_bytes > max_obituary_payload) return "a record is too long";
    out->payload.resize(out->header.payload_bytes);
    if (file_.read(out->payload.data(), out->payload.size()) != out->payload.size())
        return "it ends inside of a record";
    return checksum(out->header, out->payload.data()) == out->header.crc32c ? nullptr : "a record has a wrong checksum";
}

sonde_status DeadQueue::collect(const std::string &dir, uint32_t rank) {
    std::vector<std::string> folders;
    if (!list_folder(dir, "rank" + std::to_string(rank) + "-", &folders))
        return fail(SONDE_SYSTEM, "list journals in %s: %s", dir.c_str(), std::strerror(errno));
    std::vector<std::pair<int64_t, std::string>> by_age;
    for (std::string &f : folders) by_age.emplace_back(modified_ns(f), std::move(f));
    std::sort(by_age.begin(), by_age.end());
    for (auto &[age, folder] : by_age) alive_.push_back(std::move(folder));
    take_over();
    return SONDE_OK;
}

void DeadQueue::take_over() {
    std::vector<std::string> alive;
    for (std::string &folder : alive_) {
        const int lock = lock_folder(guard_, folder);
        if (lock >= 0) {
            dead_.push_back(std::make_unique<DeadJournal>(guard_, log_, folder, lock));
        } else if (errno == EWOULDBLOCK) {
            alive.push_back(std::move(folder));
        } else if (errno != ENOENT) {
            log_("journal " + folder + " of an earlier writer cannot be opened: " + std::strerror(errno));
        }
    }
    alive_ = std::move(alive);
    while (dead_.size() > max_dead) {
        // The first one may be half told.
        DeadJournal &oldest = *dead_[1];
        log_("too many journals of dead writers; " + oldest.folder() + " is removed untold");
        oldest.remove();
        dead_.erase(dead_.begin() + 1);
    }
}

bool DeadQueue::ahead(size_t n) {
    // The next journal comes when the end of the first is in the ring.
    while (next_.size() < n && !dead_.empty() && !dead_.front()->ended()) {
        Obituary o;
        if (dead_.front()->next(&o)) {
            next_.push_back(std::move(o));
        } else { // nothing in it can be read
            dead_.front()->remove();
            dead_.pop_front();
        }
    }
    return !next_.empty();
}

Obituary &DeadQueue::front() {
    Obituary &o = next_.front();
    if (!dead_.front()->begun) o.flags |= obituary_first;
    return o;
}

void DeadQueue::sent(uint64_t seq, bool put) {
    if (put) dead_.front()->begun = true;
    if (next_.front().kind == 0) {
        dead_.front()->end_seq = seq;
        told_.push_back(std::move(dead_.front()));
        dead_.pop_front();
    }
    next_.pop_front();
}

void DeadQueue::retell() {
    for (; !told_.empty(); told_.pop_back()) dead_.push_front(std::move(told_.back()));
    next_.clear();
    for (const Pointer &d : dead_) d->rewind();
}

void DeadQueue::released(uint64_t release, uint64_t claim) {
    for (; !told_.empty() && sonde::released(told_.front()->end_seq, release, claim); told_.pop_front())
        told_.front()->remove();
}

} // namespace sonde
