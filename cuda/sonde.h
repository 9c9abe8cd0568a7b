/*
 * sonde.h: capture from inside a running model into a ring that the agent reads.
 *
 * libsonde owns a ring of shared memory (ring2/ABI.md), keeps a connection to the agent, and never makes the model
 * wait longer than its owner allowed. What it cannot take is counted by reason and named by request and token range.
 *
 *   sonde_writer_open → sonde_define_layout → sonde_open_request
 *     → [sonde_begin_step → sonde_step_span, write → sonde_commit_step] … → sonde_end_request
 *   → sonde_writer_close → sonde_writer_free
 *
 * Units. Times are nanoseconds: *_ns of CLOCK_MONOTONIC when they are durations, *_wall_ns of CLOCK_REALTIME. Sizes
 * are bytes. Positions count tokens of a sequence from its first prompt token, from 0. A *row* is one token of one
 * layout entry; counters count rows.
 *
 * Threads. One thread at a time owns a writer. Functions marked [owner] are called by it alone; those marked [any]
 * may be called from any thread at any time between open and free. Callbacks run on the library's threads, on_log also
 * inside of sonde_writer_open, and must not call [owner] functions. The library's threads take no signals.
 *
 * Errors. Functions return a sonde_status: 0, or a negative code, and then sonde_last_error() says in one sentence,
 * on the calling thread, what failed, on which value and what to do. No C++ exception leaves the library. Rows that
 * find no room are no error. Contents of arguments are copied; no pointer is kept. Texts are UTF-8, NUL-terminated;
 * NULL is "".
 *
 * Memory. Besides the ring itself (desc_count * 128 bytes + data_bytes + 192 KiB), at most 64 MiB of living
 * requests and layouts, 8 MiB of waiting control records, and per writer about 600 KiB + desc_count * 24 bytes + 5
 * KiB per entry of its largest layout. Between sonde_begin_step and sonde_commit_step nothing is allocated. Forked
 * children cannot use a writer: every call returns SONDE_FORKED there, and the child keeps no connection open.
 */
#ifndef SONDE_H
#define SONDE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SONDE_API __attribute__((visibility("default")))
#define SONDE_VERSION 1u /* of this header; grows by additions only */

typedef int32_t sonde_status;
enum {
    SONDE_OK = 0,
    SONDE_INVALID = -1,     /* an argument cannot be accepted; nothing happened */
    SONDE_CLOSED = -2,      /* the writer was closed */
    SONDE_FULL = -3,        /* a bound was reached; what was given is lost or refused, and counted */
    SONDE_SYSTEM = -4,      /* a system call failed */
    SONDE_TIMEOUT = -5,     /* the time given was not enough */
    SONDE_CUDA = -6,        /* a CUDA call failed; the device ring takes nothing more */
    SONDE_UNSUPPORTED = -7, /* this build has no CUDA, or no device is there */
    SONDE_FORKED = -8,      /* called in a child of the process that opened the writer */
    SONDE_STATE = -9,       /* called out of order, as a commit without a step */
};

/* Element types, as in the ABI. */
enum {
    SONDE_F32 = 1, SONDE_F16 = 2, SONDE_BF16 = 3, SONDE_F8E4M3 = 4, SONDE_F8E5M2 = 5,
    SONDE_I32 = 6, SONDE_U8 = 7, SONDE_I64 = 8, SONDE_U16 = 9, SONDE_I8 = 10,
};
enum { SONDE_BEST_EFFORT = 0, SONDE_COMPLETE = 1 };                            /* mode */
enum { SONDE_SELECT_ALL = 0, SONDE_SELECT_SAMPLED = 1 };                       /* rows of an entry */
enum { SONDE_PREFILL = 0, SONDE_DECODE = 1, SONDE_RECOMPUTE = 2 };             /* phase */
enum { SONDE_ACCEPTED = 0, SONDE_REJECTED = 1, SONDE_PHANTOM = 2 };            /* verdict of an amendment */
enum { SONDE_STOP = 0, SONDE_LENGTH = 1, SONDE_ABORT = 2, SONDE_DISCONNECT = 3, /* finish */
       SONDE_ERROR = 4, SONDE_DETECTOR = 5 };
enum { SONDE_ABORT_UNKNOWN = 0, SONDE_ABORT_STOPPED = 1, SONDE_ABORT_FINISHED = 2 };
enum { /* why rows were dropped; index into sonde_stats.dropped_rows */
    SONDE_CAPTURED = 0, SONDE_NO_SLOT = 1, SONDE_NO_SPACE = 2, SONDE_OVERSIZE = 3, SONDE_CONTROL_FULL = 4,
    SONDE_BUDGET = 5, SONDE_SPOOL_FULL = 6, SONDE_DISABLED = 7, SONDE_REASONS = 8,
};
enum { SONDE_LOG_INFO = 0, SONDE_LOG_WARN = 1 };

/* Bounds that a call refuses to exceed (SONDE_INVALID). */
#define SONDE_MAX_TEXT 4096u
#define SONDE_MAX_LABELS 64u
#define SONDE_MAX_DIMS 8u
#define SONDE_MAX_ENTRIES 4096u
#define SONDE_MAX_LAYOUTS 4096u      /* of a writer: SONDE_FULL */
#define SONDE_MAX_STEP_LAYOUTS 64u
#define SONDE_MAX_STEP_RANGES 4096u
#define SONDE_MAX_STEP_ROWS 1048576u /* token rows of one step */
#define SONDE_MAX_ROW_BYTES 1073741824u
#define SONDE_MAX_OPEN 65536u        /* sequences open at once: SONDE_FULL */
#define SONDE_MAX_DETACHED 256u      /* detached captures that have not completed: SONDE_FULL */

typedef struct sonde_writer sonde_writer;
typedef struct sonde_pending sonde_pending;
typedef struct sonde_device sonde_device;

/* Asks to stop a sequence. Epoch and expiry were checked already. */
typedef struct sonde_abort_request {
    uint64_t number;       /* of the sequence */
    uint32_t sample;
    uint32_t position;     /* that the detector had seen */
    const char *engine_id; /* valid during the call */
} sonde_abort_request;

/* Stops the sequence and returns SONDE_ABORT_…; *final_length is its length in tokens, 0 on entry. */
typedef uint8_t (*sonde_abort_fn)(void *user, const sonde_abort_request *request, uint32_t *final_length);
/* Says something to a person; text is valid during the call. */
typedef void (*sonde_log_fn)(void *user, int32_t level, const char *text);

typedef struct sonde_writer_options {
    uint32_t struct_bytes;        /* sizeof(sonde_writer_options); what a smaller one does not have is 0 */
    uint32_t mode;                /* SONDE_BEST_EFFORT or SONDE_COMPLETE */
    const char *socket;           /* path of the agent's socket, which may appear later; NULL: never dial */
    const char *engine_instance;  /* at most 63 bytes, the same for all ranks of an engine */
    uint32_t rank, rank_count;    /* rank_count 0: 1 */
    uint64_t desc_count;          /* descriptors, a power of two from 8 to 2^20; 0: 4096 */
    uint64_t data_bytes;          /* a power of two from 256 KiB to 64 GiB; 0: 64 MiB */
    uint64_t step_stall_budget_ns; /* longest wait of a step in mode complete; 0: 50 ms */
    uint64_t copy_timeout_ns;     /* a detached copy that takes longer is aborted; 0: 5 s */
    uint32_t stall_limit;         /* exhausted steps in a row after which complete drops without waiting; 0: 8 */
    uint32_t reserved;            /* 0 */
    sonde_abort_fn on_abort;      /* NULL: every abort is answered "unknown" */
    void *on_abort_user;
    sonde_log_fn on_log;          /* NULL: silent */
    void *on_log_user;
    const char *journal_dir;      /* folder of journals, NULL or "": none. It must outlive the process, not the machine:
                                     tmpfs will do, and never makes a step wait for a disk. Writers of all ranks may
                                     share it */
} sonde_writer_options;

typedef struct sonde_stats {
    uint64_t captured_rows;    /* offered, dropped ones included */
    uint64_t dropped_rows[SONDE_REASONS];
    uint64_t aborted_rows;     /* their copy failed */
    uint64_t steps;            /* begun */
    uint64_t claim, release;   /* sequence numbers */
    uint64_t stalls, stall_ns; /* steps that waited, and for how long together */
    uint64_t exhausted_steps;  /* steps that used up their budget */
    uint64_t refused_releases; /* release words that made no sense */
    uint64_t pending_control;  /* control records and missing ranges that wait for room, now */
    uint64_t control_lost;     /* control records that the full queue refused */
    uint64_t unnamed_rows;     /* dropped rows that MISSING had no room to name */
    uint64_t stuck_copies;     /* detached copies aborted after the copy timeout */
    uint64_t quarantined_bytes; /* spans of stuck copies, now */
    uint64_t detached;         /* copies that have not completed, now */
    uint64_t attaches;         /* connections to an agent */
    uint32_t attached;         /* 1: an agent is connected */
    uint32_t reserved;
} sonde_stats;

/* Of the journal; all 0 when there is none. */
typedef struct sonde_journal_stats {
    uint64_t bytes;             /* of this writer's journal, now */
    uint64_t unnamed;           /* records that it did not take: it is full, or the disk is */
    uint64_t obituaries_sent;   /* records of dead writers told to the agent */
    uint64_t obituaries_untold; /* records of dead writers that are too large for this ring */
} sonde_journal_stats;

typedef struct sonde_model {
    const char *name, *revision, *weights_digest, *quantisation, *engine, *engine_version;
    uint32_t layers, d_model, vocab;
} sonde_model;

/* One hook's part of a capture: its rows, each of shape dims of dtype, row-major. */
typedef struct sonde_layout_entry {
    const char *hook;
    int32_t layer;  /* -1: none */
    uint8_t dtype;  /* SONDE_F32 … */
    uint8_t select; /* SONDE_SELECT_… */
    uint8_t ragged; /* 1: rows have their own lengths, and shape describes one unit */
    uint8_t dims;   /* used of shape; 0: a row is one element */
    uint32_t shape[SONDE_MAX_DIMS];
    uint16_t shard, shard_count; /* shard_count 0 and 1: not sharded */
} sonde_layout_entry;

typedef struct sonde_label { const char *key, *value; } sonde_label;

/* One sequence, that is one sample of one request. */
typedef struct sonde_request {
    uint64_t number; /* unique among the sequences of this writer */
    const char *external_id, *engine_id, *tenant, *adapter, *trace_parent;
    uint32_t sample, prompt_tokens, max_tokens;
    uint32_t opt_in;       /* 0 or 1 */
    uint64_t open_wall_ns; /* 0: now */
    const sonde_label *labels;
    uint32_t label_count;
    uint32_t reserved; /* 0 */
} sonde_request;

typedef struct sonde_request_end {
    uint64_t number;
    uint32_t prompt_tokens, generated_tokens, cached_tokens, passes;
    uint32_t finish;      /* SONDE_STOP … */
    uint32_t reserved;    /* 0 */
    uint64_t end_wall_ns; /* 0: now */
} sonde_request_end;

typedef struct sonde_amend_range {
    uint64_t number;
    uint32_t position, count, pass;
    uint32_t verdict; /* SONDE_ACCEPTED … */
} sonde_amend_range;

/* A run of consecutive tokens of one sequence that a step computes. */
typedef struct sonde_range {
    uint64_t number;
    uint32_t position, count; /* count at least 1 */
    uint32_t pass;            /* 0 for the first computation of a token, one more for each repetition */
    uint8_t phase;            /* SONDE_PREFILL … */
    uint8_t sampled;          /* 1: the last row of the range was sampled from */
    uint16_t reserved;        /* 0 */
    uint64_t layout_mask;     /* bit i: the i-th layout of the step has this range's rows */
} sonde_range;

/* Size of a ragged entry of a step. One that is left out has only empty rows. */
typedef struct sonde_ragged {
    uint32_t layout_index, entry;
    uint64_t bytes; /* of all rows, without the offsets in front of them */
} sonde_ragged;

/* ---- library ---- */

/* Version of the library, for people. [any] */
SONDE_API const char *sonde_version(void);
/* What the last failed call of this thread says. Valid until its next call. [any] */
SONDE_API const char *sonde_last_error(void);
/* Bytes of an element, 0 for a code that does not exist. [any] */
SONDE_API uint32_t sonde_dtype_bytes(uint32_t dtype);
/* 1 when this is the CUDA build. [any] */
SONDE_API int32_t sonde_has_cuda(void);

/* ---- writer ---- */

/* Makes a ring. It works with no agent present: the library dials in the background for ever. With a journal, what
   an earlier writer of this rank left there, in this library or another, is told to the agent as obituaries: rows that
   died with an engine and its agent together are named. SONDE_INVALID, SONDE_SYSTEM. [any] */
SONDE_API sonde_status sonde_writer_open(const sonde_writer_options *options, sonde_writer **writer);
/* Says goodbye and waits until the agent has released everything, at most timeout_ns; without a socket it does not
   wait. Nothing new is taken from then on; statistics and detached captures work until free. SONDE_TIMEOUT: the
   agent did not release everything, the message says how much. [any; the owner must not be inside another call] */
SONDE_API sonde_status sonde_writer_close(sonde_writer *writer, uint64_t timeout_ns);
/* Closes without waiting if that was not done, and lets go of the writer. The ring's memory goes when the open step
   and the last detached capture are done. NULL is ignored. In a forked child it only lets go. [owner] */
SONDE_API void sonde_writer_free(sonde_writer *writer);
/* Identifies this start of the writer, never 0. [any] */
SONDE_API uint64_t sonde_writer_epoch(const sonde_writer *writer);
/* Fills in the counters. [any] */
SONDE_API sonde_status sonde_writer_stats(sonde_writer *writer, sonde_stats *stats);
SONDE_API sonde_status sonde_writer_journal_stats(sonde_writer *writer, sonde_journal_stats *stats);
/* Waits until an agent is connected. SONDE_TIMEOUT. [any] */
SONDE_API sonde_status sonde_writer_wait_attached(sonde_writer *writer, uint64_t timeout_ns);

/* ---- announcements: never dropped; they wait in the library for room. SONDE_FULL: too many wait or live already,
   the record is lost and counted, and what it announces must not be used. ---- */

/* Says what the engine runs. A later model replaces the earlier one. SONDE_INVALID, SONDE_FULL, SONDE_CLOSED.
   [owner] */
SONDE_API sonde_status sonde_set_model(sonde_writer *writer, const sonde_model *model);
/* Says what a capture holds; *layout is its number, from 0 upward. Layouts never end. SONDE_INVALID, SONDE_FULL,
   SONDE_CLOSED. [owner] */
SONDE_API sonde_status sonde_define_layout(sonde_writer *writer, const sonde_layout_entry *entries, uint32_t count,
                                           uint32_t *layout);
/* Opens a sequence. SONDE_INVALID (as for a number that is open), SONDE_FULL, SONDE_CLOSED. [owner] */
SONDE_API sonde_status sonde_open_request(sonde_writer *writer, const sonde_request *request);
/* Ends a sequence that is open. SONDE_INVALID, SONDE_FULL, SONDE_CLOSED. [owner] */
SONDE_API sonde_status sonde_end_request(sonde_writer *writer, const sonde_request_end *end);
/* Says what became of tokens of an earlier step, as speculative decoding must. SONDE_INVALID, SONDE_FULL,
   SONDE_CLOSED. [owner] */
SONDE_API sonde_status sonde_amend(sonde_writer *writer, uint64_t step, const sonde_amend_range *ranges,
                                   uint32_t count);

/* ---- steps ---- */

/* Claims a STEP record and one CAPTURE for each layout, in one go. What finds no room is dropped, counted and
   named: no error. In mode complete it first waits for room, at most the step stall budget. *step is the number of
   the step, from 0; it may be NULL. SONDE_INVALID, SONDE_CLOSED, SONDE_STATE (the step before was not committed).
   [owner] */
SONDE_API sonde_status sonde_begin_step(sonde_writer *writer, const sonde_range *ranges, uint32_t range_count,
                                        const uint32_t *layouts, uint32_t layout_count, const sonde_ragged *ragged,
                                        uint32_t ragged_count, uint64_t *step);
/* SONDE_CAPTURED, or why the i-th layout of the open step was dropped. [owner] */
SONDE_API uint32_t sonde_step_outcome(const sonde_writer *writer, uint32_t layout_index);
/* Rows of an entry of the i-th layout of the open step. [owner] */
SONDE_API uint32_t sonde_step_rows(const sonde_writer *writer, uint32_t layout_index, uint32_t entry);
/* Memory of an entry's rows in the order of the step's ranges, 64-byte aligned; NULL when the layout was dropped or
   does not exist. *bytes is its size; NULL is allowed. It holds old bytes: write all of it before the commit, by
   any threads. Of a ragged entry it starts with rows + 1 little-endian u64 offsets into the bytes behind them.
   [owner] */
SONDE_API void *sonde_step_span(const sonde_writer *writer, uint32_t layout_index, uint32_t entry, uint64_t *bytes);
/* Rows of a source: count of them from first_row on. */
typedef struct sonde_run { uint32_t first_row, count; } sonde_run;

/* Where the rows of one entry of the open step come from: a tensor in memory of the host, whose row r has its elements
   one after the other from src + r * row_stride on. */
typedef struct sonde_copy {
    const void *src;
    uint64_t src_bytes;    /* that may be read from src on; nothing beyond is */
    uint64_t row_stride;   /* bytes from one row to the next; 0: all rows are the first one */
    const sonde_run *runs; /* in the order of the ranges that have the layout's bit */
    const uint32_t *rows;  /* NULL: all rows of the runs; else their numbers among them, rising, as sonde_thin_ranges
                              gives them */
    uint32_t run_count, row_count;
    uint32_t layout_index, entry;
    uint32_t src_dtype;    /* SONDE_F32 …; when the entry has another one, the rows are cast as by sonde_cast */
    uint32_t reserved;     /* 0 */
} sonde_copy;

/* Copies rows into the spans of many entries of the open step; entries of dropped layouts are passed over. It
   allocates nothing, and it checks everything before it writes anything. SONDE_INVALID: an entry that does not exist
   or is ragged, types that cannot be cast, rows that lie outside of src_bytes, or more or fewer rows than the entry
   has in this step (sonde_step_rows). Nothing was copied then: repair it, or abort the layouts, whose spans still hold
   old bytes. SONDE_STATE: no step is open. [owner] */
SONDE_API sonde_status sonde_step_copy(sonde_writer *writer, const sonde_copy *copies, uint32_t count);

/* A whole step whose rows lie in memory of the host: sonde_begin_step without ragged entries, sonde_step_copy and
   sonde_commit_step in one call. SONDE_INVALID, SONDE_CLOSED, SONDE_STATE, as those say. When a copy is refused,
   the step was made, *step is its number, all its layouts count as aborted, and the status is the copy's. [owner] */
SONDE_API sonde_status sonde_step_run(sonde_writer *writer, const sonde_range *ranges, uint32_t range_count,
                                      const uint32_t *layouts, uint32_t layout_count, const sonde_copy *copies,
                                      uint32_t copy_count, uint64_t *step);
/* Says that the copy into the i-th layout failed: the commit publishes it so, and its rows count as aborted.
   SONDE_INVALID, SONDE_STATE. [owner] */
SONDE_API sonde_status sonde_step_abort(sonde_writer *writer, uint32_t layout_index);
/* Takes the i-th layout out of the step: its copy goes on after the commit, and *pending publishes it. *pending is
   NULL when the layout was dropped. SONDE_INVALID, SONDE_STATE, SONDE_FULL (it stays in the step). [owner] */
SONDE_API sonde_status sonde_step_detach(sonde_writer *writer, uint32_t layout_index, sonde_pending **pending);
/* Publishes the captures that were not detached and ends the step. SONDE_STATE. [owner] */
SONDE_API sonde_status sonde_commit_step(sonde_writer *writer);

/* Memory of an entry of a detached capture, as sonde_step_span. [any thread, until commit or abort] */
SONDE_API void *sonde_pending_span(const sonde_pending *pending, uint32_t entry, uint64_t *bytes);
/* Publish a detached capture, complete or failed, after the copy has stopped writing. Exactly one of them, exactly
   once, also after sonde_writer_close and sonde_writer_free; pending is gone then. Of a copy that took longer than
   the copy timeout they only give its memory back. [any thread] */
SONDE_API void sonde_pending_commit(sonde_pending *pending);
SONDE_API void sonde_pending_abort(sonde_pending *pending);

/* ---- reductions on the host; they allocate nothing and may run on any threads. SONDE_INVALID on a bad code. ---- */

/* Converts count elements. To f32, f16, bf16: rounded to nearest, ties to even; NaN stays NaN, overflow gives
   infinity. From every floating type. Equal types are copied. dst and src do not overlap. */
SONDE_API sonde_status sonde_cast(void *dst, uint32_t dst_dtype, const void *src, uint32_t src_dtype, uint64_t count);

/* Which tokens of a step to keep: the last last_k of each range (0: all), and of these the positions that are
   multiples of stride (0 and 1: all). */
typedef struct sonde_thinning { uint32_t stride, last_k; } sonde_thinning;

/* Splits ranges so that only the kept tokens carry the bits of mask; all other bits stay, and no token is lost, so
   that the STEP still names every token. rows[0 … *row_count) are the kept rows among all rows of the ranges that
   had any bit of mask, in order. The sampled flag goes to the piece with the last token. SONDE_FULL: more than
   capacity ranges or row_capacity rows. */
SONDE_API sonde_status sonde_thin_ranges(const sonde_range *ranges, uint32_t count, const sonde_thinning *thinning,
                                         uint64_t mask, sonde_range *out, uint32_t capacity, uint32_t *out_count,
                                         uint32_t *rows, uint32_t row_capacity, uint32_t *row_count);
/* Copies the rows with these indices, one after the other. */
SONDE_API sonde_status sonde_copy_rows(void *dst, const void *src, uint64_t row_bytes, const uint32_t *rows,
                                       uint32_t row_count);

/* Figures of one row, computed in double in two passes. NaN and infinities are counted and left out of the rest. */
typedef struct sonde_row_stats {
    float l2, mean, std, abs_max; /* std: of the population */
    int32_t arg_max;              /* index of abs_max, -1 without a finite element */
    uint32_t zeros, non_finite, dim;
} sonde_row_stats;
/* Fills out[0 … rows). src: rows x width, row-major, any type of element. */
SONDE_API sonde_status sonde_stats_rows(sonde_row_stats *out, const void *src, uint32_t dtype, uint32_t rows,
                                        uint32_t width);
/* out[r][j] = sum over i of src[r][i] * matrix[j][i], f32, summed in double. matrix: k x width, row-major. src: a
   floating type. */
SONDE_API sonde_status sonde_project_rows(float *out, const void *src, uint32_t dtype, uint32_t rows, uint32_t width,
                                          const float *matrix, uint32_t k);

/* ---- Python ---- */

/* In a process that is a CPython interpreter, gives what HookPoints call at every token, as a tuple of builtin functions;
   see src/python.cpp. exchange is the capsule torch.Tensor.__dlpack_c_exchange_api__, tensor_type the class itself.
   None: it has another version than this library knows. NULL, with an exception of Python if that is one: this is no
   interpreter, or no such capsule. The caller holds the interpreter's lock, and calls it once. */
SONDE_API void *sonde_python(void *exchange, void *tensor_type);

/* ---- CUDA ----
 * One device ring per layout that a step captures on the GPU. Tapped tensors stay alive until the end of the step;
 * one gather kernel copies them into the ring in device memory, and a thread lifts them to the host ring and
 * publishes. Without CUDA, sonde_device_open returns SONDE_UNSUPPORTED.
 *
 * Eager step:  sonde_begin_step, sonde_device_arm, [model: plan, tap …, gather], sonde_commit_step.
 * CUDA graph:  record [model: plan, tap …, gather] once; then for each replay sonde_begin_step, sonde_device_arm,
 *              cudaGraphLaunch, sonde_commit_step.
 * Arming carries the identity: a gather that was not armed, as in a warm-up, captures nothing. Streams are
 * cudaStream_t. The device ring's calls belong to the writer's owner. After SONDE_CUDA its captures are aborted,
 * and the model runs on.
 */
typedef struct sonde_device_options {
    uint32_t struct_bytes; /* sizeof(sonde_device_options) */
    int32_t cuda_device;   /* ordinal; -1: the current one */
    uint64_t ring_bytes;   /* in device memory, a power of two from 1 MiB; 0: 256 MiB */
    uint32_t layout;       /* number of the layout; its entries are neither ragged nor more than 1024 */
    uint32_t reserved;     /* 0 */
} sonde_device_options;

typedef struct sonde_device_stats {
    uint64_t armed;         /* captures that the lift thread owes or has lifted */
    uint64_t lifted;        /* published */
    uint64_t aborted;       /* their gather never ran, did not fit, or failed */
    uint64_t unarmed;       /* gathers that ran without a step, as in a warm-up */
    uint64_t full;          /* gathers that found the device ring full */
    uint64_t copies, bytes; /* from device to host */
    uint64_t device_bytes;  /* of device memory held */
    uint64_t pinned_bytes;  /* of host memory pinned, the writer's data included */
    int32_t cuda_error;     /* first CUDA error, 0: none */
    uint32_t reserved;
} sonde_device_stats;

/* Makes a ring in device memory, pins the writer's data and starts the lift thread. SONDE_INVALID, SONDE_UNSUPPORTED,
   SONDE_CUDA. [owner] */
SONDE_API sonde_status sonde_device_open(sonde_writer *writer, const sonde_device_options *options,
                                         sonde_device **device);
/* Starts the list of taps of one gather, of tensors with so many rows: token_rows for entries that select all,
   sampled_rows for the others. A step may use fewer rows than the gather copies (padding): the first ones count.
   SONDE_INVALID. */
SONDE_API sonde_status sonde_device_plan(sonde_device *device, uint32_t token_rows, uint32_t sampled_rows);
/* Says where an entry's rows lie: contiguous, at a multiple of 16, unchanged until the gather has run. bytes must
   be what the plan says. SONDE_INVALID. */
SONDE_API sonde_status sonde_device_tap(sonde_device *device, uint32_t entry, const void *rows, uint64_t bytes);
/* One tap of many. */
typedef struct sonde_tap {
    const void *rows;
    uint64_t bytes;
    uint32_t entry, reserved; /* reserved: 0 */
} sonde_tap;

/* Taps many entries as sonde_device_tap does, in their order. SONDE_INVALID, SONDE_STATE: of the first wrong one; those
   before it are tapped, and the plan must be made again. */
SONDE_API sonde_status sonde_device_taps(sonde_device *device, const sonde_tap *taps, uint32_t count);
/* Gathers what was tapped since the last gather now, on a side stream behind what stream has been given, because it
   will be overwritten. Before the kernel that overwrites it, call sonde_device_join. SONDE_CUDA, SONDE_STATE. */
SONDE_API sonde_status sonde_device_gather_early(sonde_device *device, void *stream);
/* Makes stream wait for the side stream. SONDE_CUDA. */
SONDE_API sonde_status sonde_device_join(sonde_device *device, void *stream);
/* Gathers the rest and commits the step in the device ring; joins by itself. Every entry must have been tapped. May
   be recorded into a CUDA graph. SONDE_STATE, SONDE_CUDA. */
SONDE_API sonde_status sonde_device_gather(sonde_device *device, void *stream);
/* Detaches the i-th layout of the open step and hands it to the next gather that runs on stream. A layout that was
   dropped is not armed: SONDE_OK. Not during graph capture. SONDE_INVALID, SONDE_STATE, SONDE_FULL, SONDE_CUDA: the
   layout's rows then count as aborted. */
SONDE_API sonde_status sonde_device_arm(sonde_device *device, uint32_t layout_index, void *stream);
/* Fills in the counters. [any] */
SONDE_API sonde_status sonde_device_get_stats(sonde_device *device, sonde_device_stats *stats);
/* Waits for the armed captures at most timeout_ns, aborts the rest, and lets go of everything. Before
   sonde_writer_free. NULL is ignored. SONDE_TIMEOUT, SONDE_CUDA. */
SONDE_API sonde_status sonde_device_close(sonde_device *device, uint64_t timeout_ns);

#ifdef __cplusplus
}
#endif
#endif
