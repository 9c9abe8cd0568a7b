/*
 * ring2_abi.h is the truth about the bytes that Ring² shares between processes.
 * ABI.md explains protocol, orderings and payloads; abi.go is generated from
 * this file (go generate ./ring2). C11 and C++11. All values little-endian.
 *
 * The generator reads a constrained C: one field per line, fixed-width types,
 * an optional alignas(64), and a comment on every field.
 */
#ifndef RING2_ABI_H
#define RING2_ABI_H

#include <assert.h>
#include <stdalign.h>
#include <stddef.h>
#include <stdint.h>

#define RING2_MAGIC 0x32474e52u         /* "RNG2": the ring is initialised */
#define RING2_MESSAGE_MAGIC 0x53473252u /* "R2GS": a handshake message */
#define RING2_ABI_MAJOR 1               /* differs: the peers refuse each other */
#define RING2_ABI_MINOR 0               /* differs: the peers work together */

#define RING2_ZONE_BYTES 65536 /* zones lie so far apart that pages of 64 KiB map alone */
#define RING2_CONFIG_OFF 0     /* struct ring2_config */
#define RING2_PRODUCER_OFF 65536   /* struct ring2_producer, written by the writer */
#define RING2_CONSUMER_OFF 131072  /* struct ring2_consumer, written by the reader */
#define RING2_DESC_OFF 196608  /* struct ring2_desc[desc_count] */
#define RING2_PAYLOAD_ALIGN 64 /* of data_pos and of each entry of a capture */

#define RING2_FLAG_ABORTED 1     /* desc.flags: the copy failed, do not read the payload */
#define RING2_FLAG_PAYLOAD_CRC 2 /* desc.flags: payload_crc32c is valid */

#define RING2_KIND_MODEL 1
#define RING2_KIND_LAYOUT 2
#define RING2_KIND_REQUEST_OPEN 3
#define RING2_KIND_STEP 4
#define RING2_KIND_CAPTURE 5
#define RING2_KIND_AMEND 6
#define RING2_KIND_MISSING 7
#define RING2_KIND_REQUEST_END 8
#define RING2_KIND_OBITUARY 9
#define RING2_KIND_BYE 10

#define RING2_MESSAGE_HELLO 1         /* engine to agent, with three descriptors: ctl, data, wake */
#define RING2_MESSAGE_WELCOME 2       /* agent to engine */
#define RING2_MESSAGE_REFUSE 3        /* agent to engine; the agent then closes */
#define RING2_MESSAGE_SNAPSHOT_ITEM 4 /* engine to agent */
#define RING2_MESSAGE_SNAPSHOT_END 5  /* engine to agent */
#define RING2_MESSAGE_ABORT 6         /* agent to engine */
#define RING2_MESSAGE_ABORT_ACK 7     /* engine to agent */
#define RING2_MESSAGE_MAX_BYTES 131072 /* largest message, header included */

/* Zone 0. Written once before the memfd is passed on; magic last, with release. */
struct ring2_config {
    uint32_t magic;                 /* RING2_MAGIC */
    uint16_t abi_major;             /* RING2_ABI_MAJOR of the writer */
    uint16_t abi_minor;             /* RING2_ABI_MINOR of the writer */
    uint32_t header_bytes;          /* sizeof(struct ring2_config) */
    uint32_t desc_bytes;            /* sizeof(struct ring2_desc) */
    uint64_t desc_count;            /* descriptors, a power of two */
    uint64_t desc_off;              /* RING2_DESC_OFF */
    uint64_t data_bytes;            /* size of the data memfd, a power of two */
    uint64_t epoch;                 /* random, never 0, new at each start of a writer */
    uint64_t features;              /* 0; a reader ignores bits that it does not know */
    uint64_t reserve_descs;         /* descriptors that captures leave to control records */
    uint64_t reserve_bytes;         /* payload bytes that captures leave to control records */
    uint32_t producer_pid;          /* of the engine, for people */
    uint32_t rank;                  /* of this writer, below rank_count */
    uint32_t rank_count;            /* ranks of the engine instance */
    uint32_t mode;                  /* 0 best_effort, 1 complete */
    uint64_t step_stall_budget_ns;  /* longest wait per step in mode complete */
    uint64_t wall_minus_mono_ns;    /* CLOCK_REALTIME minus CLOCK_MONOTONIC at start */
    uint8_t engine_instance[64];    /* UTF-8, NUL padded, the last byte is NUL */
    uint32_t crc32c;                /* over bytes [4, 168): all of the above but magic */
    uint32_t reserved;              /* 0 */
};

/* Zone 1. Written by the writer only; each counter is an atomic store. */
struct ring2_producer {
    alignas(64) uint64_t claim_seq;      /* next seq to be claimed; stored before any commit below it */
    alignas(64) uint64_t captured_rows;  /* rows offered, dropped ones included */
    uint64_t dropped_rows[8];            /* by drop reason; index 0 is unused */
    uint64_t aborted_rows;               /* rows whose copy failed */
    uint64_t steps;                      /* steps begun */
    alignas(64) uint64_t beat_ns;        /* CLOCK_MONOTONIC of the last sign of life */
    uint32_t closing;                    /* 1 after a BYE: the end is a clean one */
    uint32_t reserved;                   /* 0 */
};

/* Zone 2. Written by the reader; need_wakeup by both, with read-modify-writes. */
struct ring2_consumer {
    alignas(64) uint64_t release_seq;  /* everything below may be reused; a step boundary */
    alignas(64) uint32_t need_wakeup;  /* 1: the reader blocks on the eventfd */
    uint32_t reserved;                 /* 0 */
    alignas(64) uint64_t beat_ns;      /* CLOCK_MONOTONIC of the last sign of life */
};

/* Slot seq % desc_count. Written by the writer, commit last, with release. */
struct ring2_desc {
    uint64_t commit;          /* seq + 1 when published; never cleared */
    uint64_t seq;             /* position in the ring, from 0 */
    uint64_t data_pos;        /* payload at data[data_pos % data_bytes], multiple of 64, never falls */
    uint32_t data_len;        /* payload bytes, contiguous */
    uint16_t kind;            /* RING2_KIND_ */
    uint16_t flags;           /* RING2_FLAG_ */
    uint64_t capture_ns;      /* CLOCK_MONOTONIC at the claim; of a CAPTURE, once its copy was complete */
    uint64_t step;            /* of STEP and CAPTURE, else 0 */
    uint32_t layout;          /* of CAPTURE, else 0 */
    uint32_t rows;            /* of CAPTURE: token rows, else 0 */
    uint8_t reserved[64];     /* 0 */
    uint32_t payload_crc32c;  /* when RING2_FLAG_PAYLOAD_CRC; control records always have it */
    uint32_t crc32c;          /* over bytes [8, 124) of this descriptor */
};

/* First bytes of every message on the socket. */
struct ring2_message {
    uint32_t magic;       /* RING2_MESSAGE_MAGIC */
    uint16_t abi_major;   /* of the sender */
    uint16_t abi_minor;   /* of the sender */
    uint16_t type;        /* RING2_MESSAGE_ */
    uint16_t fds;         /* descriptors that travel with the message: 3 with HELLO, else 0 */
    uint32_t body_bytes;  /* bytes after this header */
};

static_assert(sizeof(struct ring2_config) == 176, "config is 176 bytes");
static_assert(offsetof(struct ring2_config, epoch) == 40, "epoch");
static_assert(offsetof(struct ring2_config, engine_instance) == 104, "engine_instance");
static_assert(offsetof(struct ring2_config, crc32c) == 168, "config crc32c ends what it covers");
static_assert(sizeof(struct ring2_producer) == 256, "producer is four cache lines");
static_assert(offsetof(struct ring2_producer, captured_rows) == 64, "captured_rows");
static_assert(offsetof(struct ring2_producer, beat_ns) == 192, "producer beat_ns");
static_assert(sizeof(struct ring2_consumer) == 192, "consumer is three cache lines");
static_assert(offsetof(struct ring2_consumer, need_wakeup) == 64, "need_wakeup");
static_assert(offsetof(struct ring2_consumer, beat_ns) == 128, "consumer beat_ns");
static_assert(sizeof(struct ring2_desc) == 128, "a descriptor is two cache lines");
static_assert(offsetof(struct ring2_desc, seq) == 8, "crc32c covers from seq");
static_assert(offsetof(struct ring2_desc, payload_crc32c) == 120, "payload_crc32c");
static_assert(offsetof(struct ring2_desc, crc32c) == 124, "crc32c is last");
static_assert(sizeof(struct ring2_message) == 16, "a message header is 16 bytes");
static_assert(RING2_DESC_OFF == 3 * RING2_ZONE_BYTES, "descriptors follow three zones");

#endif
