#include "message.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace sonde {

int send_message(int socket, uint16_t type, const Bytes &body, const int *fds, int fd_count) {
    ring2_message header{RING2_MESSAGE_MAGIC,
                         RING2_ABI_MAJOR,
                         RING2_ABI_MINOR,
                         type,
                         static_cast<uint16_t>(fd_count),
                         static_cast<uint32_t>(body.size())};
    iovec parts[2] = {{&header, sizeof header}, {const_cast<uint8_t *>(body.data()), body.size()}};
    alignas(cmsghdr) char rights[CMSG_SPACE(sizeof(int) * hello_descriptors)] = {};
    msghdr m{};
    m.msg_iov = parts;
    m.msg_iovlen = 2;
    if (fd_count > 0) {
        const size_t bytes = sizeof(int) * static_cast<size_t>(fd_count);
        m.msg_control = rights;
        m.msg_controllen = CMSG_SPACE(bytes);
        cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(bytes);
        std::memcpy(CMSG_DATA(c), fds, bytes);
    }
    return sendmsg(socket, &m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? errno : 0;
}

ssize_t receive_message(int socket, Bytes &buffer, std::array<int, hello_descriptors> &fds, int *fd_count) {
    // Room for one descriptor more than a HELLO has shows a message with too many; the kernel drops what finds no room.
    alignas(cmsghdr) char rights[CMSG_SPACE(sizeof(int) * (hello_descriptors + 1))];
    iovec part{buffer.data(), buffer.size()};
    msghdr m{};
    m.msg_iov = &part;
    m.msg_iovlen = 1;
    m.msg_control = rights;
    m.msg_controllen = sizeof rights;
    *fd_count = 0;
    const ssize_t n = recvmsg(socket, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) return -errno;
    for (cmsghdr *c = CMSG_FIRSTHDR(&m); c != nullptr; c = CMSG_NXTHDR(&m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (*fd_count < hello_descriptors) {
                fds[static_cast<size_t>(*fd_count)] = fd;
            } else {
                close(fd);
            }
            ++*fd_count;
        }
    }
    if ((m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) return -EMSGSIZE;
    return n;
}

const char *check_message(const Bytes &buffer, size_t bytes, int fd_count, ring2_message *header) {
    if (bytes < sizeof *header) return "a message is shorter than its header";
    std::memcpy(header, buffer.data(), sizeof *header);
    if (header->magic != RING2_MESSAGE_MAGIC) return "the peer does not speak Ring2";
    if (header->body_bytes != bytes - sizeof *header) return "a message has another length than its header says";
    // Header and body of a REFUSE are the same in every version.
    if (header->abi_major != RING2_ABI_MAJOR && header->type != RING2_MESSAGE_REFUSE)
        return "the peer speaks another major version of the ring ABI; upgrade the older of the two";
    const int wanted = header->type == RING2_MESSAGE_HELLO ? hello_descriptors : 0;
    if (fd_count != wanted || header->fds != wanted) return "a message came with a wrong number of descriptors";
    return nullptr;
}

} // namespace sonde
