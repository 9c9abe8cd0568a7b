#include "memory.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <initializer_list>

#include "fail.h"
#include "poison.h"
#include "ring.h"

namespace sonde {

namespace {

constexpr int wanted_seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// Makes a memfd whose size is final, and maps it.
sonde_status make_sealed(const char *name, uint64_t bytes, int *fd, uint8_t **at) {
    *fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (*fd < 0) return fail(SONDE_SYSTEM, "make %s: create memfd: %s", name, std::strerror(errno));
    if (ftruncate(*fd, static_cast<off_t>(bytes)) != 0)
        return fail(SONDE_SYSTEM, "make %s of %llu bytes: %s", name, static_cast<unsigned long long>(bytes),
                    std::strerror(errno));
    if (fcntl(*fd, F_ADD_SEALS, wanted_seals) != 0)
        return fail(SONDE_SYSTEM, "seal %s: %s", name, std::strerror(errno));
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (p == MAP_FAILED) return fail(SONDE_SYSTEM, "map %s: %s", name, std::strerror(errno));
    *at = static_cast<uint8_t *>(p);
    // A child that wrote here would write into the parent's records. Failure leaves only that protection out.
    (void)madvise(p, bytes, MADV_DONTFORK);
    return SONDE_OK;
}

} // namespace

sonde_status RingMemory::make(uint64_t desc_count, uint64_t data_bytes) {
    const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    ctl_bytes_ = (sonde::ctl_bytes(desc_count) + page - 1) / page * page;
    data_bytes_ = data_bytes;
    if (sonde_status s = make_sealed("sonde-ring-ctl", ctl_bytes_, &ctl_fd_, &ctl_); s != SONDE_OK) return s;
    if (sonde_status s = make_sealed("sonde-ring-data", data_bytes_, &data_fd_, &data_); s != SONDE_OK) return s;
    wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd_ < 0) return fail(SONDE_SYSTEM, "make eventfd: %s", std::strerror(errno));
    return SONDE_OK;
}

RingMemory::~RingMemory() {
    if (ctl_ != nullptr) munmap(ctl_, ctl_bytes_);
    if (data_ != nullptr) {
        SONDE_UNPOISON(data_, data_bytes_); // others may get this place
        munmap(data_, data_bytes_);
    }
    for (int fd : {ctl_fd_, data_fd_, wake_fd_})
        if (fd >= 0) close(fd);
}

bool RingMemory::populate([[maybe_unused]] uint64_t offset, [[maybe_unused]] uint64_t bytes) const {
#ifdef MADV_POPULATE_WRITE
    return madvise(data_ + offset, bytes, MADV_POPULATE_WRITE) == 0;
#else
    return false;
#endif
}

void RingMemory::wake() const {
    const uint64_t one = 1;
    // EAGAIN is the full counter; no other error can happen to an open eventfd.
    [[maybe_unused]] const ssize_t n = write(wake_fd_, &one, sizeof one);
}

} // namespace sonde
