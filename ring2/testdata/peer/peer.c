/* peer.c is an engine written by a stranger, who knows ABI.md and nothing else.
 *   peer SOCKET TENANT REQUEST STEPS   streams one request of STEPS steps to an agent
 *   peer --image FILE                  writes the memory of such a ring: ring_v1.bin
 * Step 0 computes 5 prompt tokens, each later step one more. Rows: resid_post, layer 3: f32 position + i/16, i < 8;
 * token_ids: i32 1000 + position; logits, of sampled rows: f32 2*position + i, i < 2. Exit status: 0 everything was
 * said, 2 wrong usage, 3 the agent refused or is gone. For little-endian hosts. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { DESCS = 16, DATA = 4096, RESERVE_DESCS = 2, RESERVE_BYTES = 256, PROMPT = 5, DIM = 8 };
enum { PRODUCER = 65536, CONSUMER = 131072, DESC_OFF = 196608, CTL = DESC_OFF + 128 * DESCS };
enum { MODEL = 1, LAYOUT, REQUEST_OPEN, STEP, CAPTURE, REQUEST_END = 8, BYE = 10 };
enum { HELLO = 1, WELCOME, SNAPSHOT_END = 5, ABORT, ABORT_ACK, SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL };

struct bytes { uint8_t b[4096]; size_t n; };
static uint8_t *ctl, *data;
static uint64_t claim, head, tail, tail_pos, released, end_of[DESCS], kind_of[DESCS], fake_clock;
static int sock = -1, fds[3] = {-1, -1, -1}; /* ctl, data, wake */

static void die(const char *what) { perror(what); exit(3); }
static _Atomic uint64_t *u64_at(size_t off) { return (_Atomic uint64_t *)(void *)(ctl + off); }
static _Atomic uint32_t *u32_at(size_t off) { return (_Atomic uint32_t *)(void *)(ctl + off); }
static size_t up64(size_t n) { return (n + 63) / 64 * 64; }
static uint32_t crc32c(const uint8_t *p, size_t n) {
    uint32_t c = 0xffffffffu;
    for (; n--; p++) {
        c ^= *p;
        for (int k = 0; k < 8; k++) c = c >> 1 ^ (0x82f63b78u & (0u - (c & 1)));
    }
    return ~c;
}
static void set(uint8_t *p, uint64_t v, int size) { for (int i = 0; i < size; i++) p[i] = (uint8_t)(v >> 8 * i); }
static void put(struct bytes *b, uint64_t v, int size) { set(b->b + b->n, v, size); b->n += (size_t)size; }
static void put_f32(struct bytes *b, float v) { uint32_t u; memcpy(&u, &v, 4); put(b, u, 4); }
static void fill(struct bytes *b) { while (b->n % 64) b->b[b->n++] = 0; }
static void text(struct bytes *b, const char *s) {
    size_t n = strnlen(s, 512);
    put(b, n, 2), memcpy(b->b + b->n, s, n), b->n += n;
}
static uint64_t now(clockid_t clock) {
    struct timespec t;
    if (sock < 0) return ++fake_clock; /* an image holds no real time */
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
static void send_message(uint16_t type, const struct bytes *body, int fd_count) {
    struct bytes m = {.n = 0};
    struct iovec v = {m.b, 16 + body->n};
    put(&m, 0x53473252, 4), put(&m, 1, 4), put(&m, type, 2), put(&m, (uint64_t)fd_count, 2), put(&m, body->n, 4);
    memcpy(m.b + m.n, body->b, body->n);
    union { struct cmsghdr h; char space[CMSG_SPACE(sizeof fds)]; } rights = {.space = {0}};
    struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1};
    if (fd_count) {
        h.msg_control = &rights, h.msg_controllen = sizeof rights.space;
        rights.h = (struct cmsghdr){CMSG_LEN(sizeof fds), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(&rights.h), fds, sizeof fds);
    }
    if (sendmsg(sock, &h, MSG_NOSIGNAL) < 0) die("send");
}
static uint16_t receive_message(uint8_t m[4096], int flags) { /* 0: there is none */
    ssize_t n = recv(sock, m, 4096, flags);
    if (n == 0) exit(3);
    return n < 16 ? 0 : (uint16_t)(m[8] | m[9] << 8);
}
/* Nobody can stop our request: every ABORT is answered "unknown". */
static void answer_aborts(void) {
    uint8_t m[4096];
    for (uint16_t type; (type = receive_message(m, MSG_DONTWAIT)) != 0;) {
        struct bytes ack = {.n = 16};
        memcpy(ack.b, m + 16, 8);
        if (type == ABORT) send_message(ABORT_ACK, &ack, 0);
    }
}

static void reclaim(void) {
    uint64_t r = atomic_load_explicit(u64_at(CONSUMER), memory_order_acquire);
    if (r - released > claim - released || (r != claim && kind_of[r % DESCS] == CAPTURE)) return; /* nonsense */
    for (released = r; tail != r; tail++) tail_pos = end_of[tail % DESCS];
    if (tail == claim) tail_pos = head;
}
/* Waits until two records of together so many bytes surely fit, even around the end of data. */
static void wait_for_room(size_t size) {
    for (; sock >= 0; nanosleep(&(struct timespec){0, 200000}, NULL)) {
        answer_aborts(), reclaim();
        if (claim - tail + 2 + RESERVE_DESCS <= DESCS && head + 2 * size - tail_pos <= DATA - RESERVE_BYTES) return;
    }
}
static uint64_t claim_record(uint16_t kind, uint64_t step, uint32_t rows, const struct bytes *payload) {
    uint64_t seq = claim++, size = up64(payload->n);
    uint8_t *d = ctl + DESC_OFF + 128 * (seq % DESCS);
    if (head % DATA + size > DATA) head = (head / DATA + 1) * DATA;
    memset(d + 8, 0, 120); /* the commit word before it keeps the value of the last lap */
    set(d + 8, seq, 8), set(d + 16, head, 8), set(d + 24, payload->n, 4), set(d + 28, kind, 2);
    set(d + 32, now(CLOCK_MONOTONIC), 8), set(d + 40, step, 8), set(d + 52, rows, 4);
    if (kind != CAPTURE) set(d + 30, 2, 2), set(d + 120, crc32c(payload->b, payload->n), 4);
    memcpy(data + head % DATA, payload->b, payload->n);
    kind_of[seq % DESCS] = kind, end_of[seq % DESCS] = head += size;
    return seq;
}
static void publish(uint64_t first) { /* everything claimed from first on */
    atomic_store_explicit(u64_at(PRODUCER), claim, memory_order_relaxed);
    for (uint64_t seq = first; seq != claim; seq++) {
        size_t d = DESC_OFF + 128 * (size_t)(seq % DESCS);
        set(ctl + d + 124, crc32c(ctl + d + 8, 116), 4);
        atomic_store_explicit(u64_at(d), seq + 1, memory_order_release);
    }
    uint64_t one = 1;
    if (atomic_exchange(u32_at(CONSUMER + 64), 0) == 1 && write(fds[2], &one, 8) < 0) die("wake");
}
static void control(uint16_t kind, const struct bytes *payload) {
    wait_for_room(up64(payload->n)), publish(claim_record(kind, 0, 0, payload));
}
static void run_step(uint64_t step) {
    struct bytes s = {.n = 0}, c = {.n = 0};
    uint32_t count = step ? 1 : PROMPT, last = PROMPT - 1 + (uint32_t)step, first = last - count + 1;
    for (uint32_t i = 0; i < count * DIM; i++) put_f32(&c, (float)(first + i / DIM) + (float)(i % DIM) / 16);
    fill(&c);
    for (uint32_t p = first; p <= last; p++) put(&c, 1000 + p, 4);
    fill(&c), put_f32(&c, 2 * (float)last), put_f32(&c, 2 * (float)last + 1), fill(&c);
    wait_for_room(64 + c.n);
    put(&s, step, 8), put(&s, 1, 2), put(&s, 0, 8), put(&s, claim + 1, 8); /* layout 0, captured */
    put(&s, 1, 4), put(&s, 1, 8), put(&s, first, 4), put(&s, count, 4), put(&s, 0, 4); /* request 1, pass 0 */
    put(&s, step != 0, 1), put(&s, 1, 3), put(&s, 1, 8); /* phase, sampled, mask */
    atomic_fetch_add_explicit(u64_at(PRODUCER + 64), 2 * count + 1, memory_order_relaxed);
    atomic_store_explicit(u64_at(PRODUCER + 144), step + 1, memory_order_relaxed);
    uint64_t seq = claim_record(STEP, step, 0, &s);
    claim_record(CAPTURE, step, count, &c), publish(seq);
}
static void entry(struct bytes *b, const char *hook, int layer, int dtype, int select, uint32_t dim) {
    text(b, hook), put(b, (uint32_t)layer, 4), put(b, (uint32_t)dtype, 1), put(b, (uint32_t)select, 2);
    put(b, dim != 0, 1), put(b, dim, dim ? 4 : 0), put(b, 1 << 16, 4); /* shard 0 of 1 */
}
static void run(const char *tenant, const char *request, uint64_t steps) {
    struct bytes m = {.n = 0}, l = {.n = 0}, r = {.n = 0}, e = {.n = 0}, none = {.n = 0};
    text(&m, "stranger"), text(&m, "r1"), text(&m, "sha256:00"), text(&m, "none"), text(&m, "peer"), text(&m, "1");
    put(&m, 4, 4), put(&m, DIM, 4), put(&m, 2048, 4), control(MODEL, &m);
    put(&l, 0, 4), put(&l, 3, 4), entry(&l, "resid_post", 3, 1, 0, DIM), entry(&l, "token_ids", -1, 6, 0, 0);
    entry(&l, "logits", -1, 1, 1, 2), control(LAYOUT, &l);
    put(&r, 1, 8), text(&r, request), text(&r, "peer-1"), put(&r, 0, 4), text(&r, tenant), text(&r, ""), text(&r, "");
    put(&r, 1, 1), put(&r, PROMPT, 4), put(&r, steps, 4), put(&r, now(CLOCK_REALTIME), 8), put(&r, 1, 2);
    text(&r, "written_in"), text(&r, "C"), control(REQUEST_OPEN, &r);
    for (uint64_t i = 0; i < steps; i++) run_step(i);
    put(&e, 1, 8), put(&e, PROMPT, 4), put(&e, steps, 4), put(&e, 0, 4), put(&e, 1, 4), put(&e, 1, 1);
    put(&e, now(CLOCK_REALTIME), 8), control(REQUEST_END, &e);
    atomic_store_explicit(u32_at(PRODUCER + 200), 1, memory_order_relaxed), control(BYE, &none);
}
static void make_ring(void) {
    struct bytes c = {.n = 0};
    uint64_t epoch = 0x0102030405060708, offset = sock < 0 ? 4096 : now(CLOCK_REALTIME) - now(CLOCK_MONOTONIC);
    if (sock >= 0 && getrandom(&epoch, 8, 0) != 8) die("getrandom");
    fds[0] = memfd_create("sonde-ring-ctl", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    fds[1] = memfd_create("sonde-ring-data", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    fds[2] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fds[2] < 0 || ftruncate(fds[0], CTL) || ftruncate(fds[1], DATA)) die("make ring");
    if (fcntl(fds[0], F_ADD_SEALS, SEALS) || fcntl(fds[1], F_ADD_SEALS, SEALS)) die("seal");
    ctl = mmap(NULL, CTL, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
    data = mmap(NULL, DATA, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
    if (ctl == MAP_FAILED || data == MAP_FAILED) die("map");
    put(&c, 0, 4), put(&c, 1, 4), put(&c, 176, 4), put(&c, 128, 4), put(&c, DESCS, 8), put(&c, DESC_OFF, 8);
    put(&c, DATA, 8), put(&c, epoch | 1, 8), put(&c, 0, 8), put(&c, RESERVE_DESCS, 8), put(&c, RESERVE_BYTES, 8);
    put(&c, sock < 0 ? 42 : (uint64_t)getpid(), 8), put(&c, 1, 4), put(&c, 1, 4), put(&c, 0, 8); /* rank 0 of 1 */
    put(&c, offset, 8), memcpy(c.b + c.n, "stranger-0", 10), c.n = 168, put(&c, crc32c(c.b + 4, 164), 4);
    memcpy(ctl + 4, c.b + 4, 172);
    atomic_store_explicit(u32_at(0), 0x32474e52, memory_order_release);
}
static void attach(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct bytes hello = {.n = 0}, end = {.n = 16}, m = {.n = 0}; /* nothing was released: the snapshot is empty */
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connect(sock, (struct sockaddr *)&address, sizeof address)) die(path);
    make_ring();
    text(&hello, "peer.c"), send_message(HELLO, &hello, 3);
    if (receive_message(m.b, 0) != WELCOME) fprintf(stderr, "refused: %.400s\n", m.b + 18), exit(3);
    send_message(SNAPSHOT_END, &end, 0);
}
int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "--image") == 0) {
        FILE *f = fopen(argv[2], "wb");
        if (!f) die(argv[2]);
        make_ring(), run("acme", "req-1", 3);
        fwrite(ctl, 1, 176, f), fwrite(ctl + PRODUCER, 1, 256, f), fwrite(ctl + CONSUMER, 1, 192, f);
        fwrite(ctl + DESC_OFF, 128, DESCS, f), fwrite(data, 1, DATA, f);
        return fclose(f) ? 3 : 0;
    }
    if (argc != 5) return 2;
    attach(argv[1]), run(argv[2], argv[3], strtoull(argv[4], NULL, 10));
}
