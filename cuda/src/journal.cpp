#include "journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "fail.h"
#include "folder.h"

namespace sonde {

namespace {

template <class T>
const uint8_t *bytes_of(const T &value) {
    return reinterpret_cast<const uint8_t *>(&value);
}

template <class T>
void append_to(Bytes &b, const T &value) {
    b.insert(b.end(), bytes_of(value), bytes_of(value) + sizeof value);
}

} // namespace

uint32_t checksum(const JournalHeader &header) { return crc32c(&header, offsetof(JournalHeader, crc32c)); }

uint32_t checksum(const JournalRecord &record, const uint8_t *payload) {
    constexpr size_t skipped = offsetof(JournalRecord, ordinal);
    return crc32c(payload, record.payload_bytes, crc32c(bytes_of(record) + skipped, sizeof record - skipped));
}

JournalHeader journal_header(uint64_t epoch, uint32_t rank) {
    JournalHeader h{{}, journal_version, epoch, rank, 0};
    std::memcpy(h.magic, journal_magic, sizeof h.magic);
    h.crc32c = checksum(h);
    return h;
}

JournalRecord journal_record(uint64_t ordinal, uint64_t seq, uint16_t kind, uint16_t flags, const uint8_t *payload,
                             size_t bytes) {
    JournalRecord r{static_cast<uint32_t>(bytes), 0, ordinal, seq, kind, flags};
    r.crc32c = checksum(r, payload);
    return r;
}

std::string journal_folder(const std::string &dir, uint32_t rank, uint64_t epoch) {
    char name[64];
    std::snprintf(name, sizeof name, "/rank%" PRIu32 "-%016" PRIx64, rank, epoch);
    return dir + name;
}

std::string segment_path(const std::string &folder, uint32_t number) {
    char name[16];
    std::snprintf(name, sizeof name, "/%08" PRIu32, number);
    return folder + name;
}

Journal::Journal(ForkGuard &guard, const std::string &dir, uint64_t epoch, uint32_t rank)
    : guard_(guard), folder_(journal_folder(dir, rank, epoch)), epoch_(epoch), rank_(rank) {}

Journal::~Journal() {
    if (now_.fd >= 0) guard_.close_now(now_.fd);
    if (lock_ >= 0) guard_.close_now(lock_);
}

sonde_status Journal::open() {
    if (mkdir(folder_.c_str(), 0700) != 0)
        return fail(SONDE_SYSTEM, "begin journal %s: %s", folder_.c_str(), std::strerror(errno));
    lock_ = lock_folder(guard_, folder_);
    if (lock_ < 0) return fail(SONDE_SYSTEM, "lock journal %s: %s", folder_.c_str(), std::strerror(errno));
    NewSegment first;
    if (const sonde_status s = next_segment({}, &first); s != SONDE_OK) return s;
    begin(std::move(first));
    return SONDE_OK;
}

void Journal::append(uint64_t ordinal, uint64_t seq, uint16_t kind, uint16_t flags, const uint8_t *payload,
                     size_t bytes) {
    JournalRecord r = journal_record(ordinal, seq, kind, flags, payload, bytes);
    const uint64_t n = sizeof r + bytes;
    if (now_.fd < 0 || bytes_ + n > max_bytes) {
        unnamed_++;
        return;
    }
    // One write: a record that is cut short was the last one.
    const iovec parts[2] = {{&r, sizeof r}, {const_cast<uint8_t *>(payload), bytes}};
    if (writev(now_.fd, parts, 2) != static_cast<ssize_t>(n)) {
        unnamed_++;
        // What was written of the record must go, or nothing after it could be read.
        if (ftruncate(now_.fd, static_cast<off_t>(now_.bytes)) != 0) seal();
        return;
    }
    now_.bytes += n;
    bytes_ += n;
}

bool Journal::full(uint64_t alive_bytes) const {
    return now_.fd < 0 || (now_.bytes >= segment_bytes && now_.bytes >= 2 * alive_bytes);
}

sonde_status Journal::next_segment(const std::vector<AlivePointer> &alive, NewSegment *made) {
    Bytes b;
    append_to(b, journal_header(epoch_, rank_));
    for (const AlivePointer &r : alive) {
        append_to(b, journal_record(r->ordinal, r->seq, r->kind, 0, r->payload.data(), r->payload.size()));
        b.insert(b.end(), r->payload.begin(), r->payload.end());
    }
    made->path = segment_path(folder_, number_ + 1);
    made->fd = guard_.open_file(made->path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC);
    if (made->fd < 0) return fail(SONDE_SYSTEM, "begin segment %s: %s", made->path.c_str(), std::strerror(errno));
    for (size_t at = 0; at < b.size();) {
        const ssize_t n = write(made->fd, b.data() + at, b.size() - at);
        if (n <= 0) {
            const int error = errno;
            guard_.close_now(made->fd);
            unlink(made->path.c_str());
            return fail(SONDE_SYSTEM, "begin segment %s: %s", made->path.c_str(), std::strerror(error));
        }
        at += static_cast<size_t>(n);
    }
    made->bytes = b.size();
    return SONDE_OK;
}

void Journal::begin(NewSegment &&segment) {
    seal();
    now_ = std::move(segment);
    number_++;
    bytes_ += now_.bytes;
}

void Journal::seal() {
    if (now_.fd < 0) return;
    guard_.close_now(now_.fd);
    old_.push_back(Sealed{now_.path, now_.bytes, 0, false});
    now_ = NewSegment{};
}

std::vector<std::string> Journal::settle(bool empty, uint64_t release, uint64_t claim) {
    std::vector<std::string> gone;
    for (Sealed &s : old_) {
        if (!empty || s.known) continue;
        s.need = claim;
        s.known = true;
    }
    for (; !old_.empty() && old_.front().known && claim - old_.front().need >= claim - release; old_.pop_front()) {
        gone.push_back(old_.front().path);
        bytes_ -= old_.front().bytes;
    }
    return gone;
}

void Journal::remove() {
    seal();
    remove_folder(folder_);
}

} // namespace sonde
