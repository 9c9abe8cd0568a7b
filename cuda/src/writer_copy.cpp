// Copies of rows from the host's tensors into the spans of a step.

#include <cstring>

#include "fail.h"
#include "reduce.h"
#include "writer.h"

using namespace sonde;

namespace {

using Number = unsigned long long;

uint64_t row_elements(const LayoutEntry &e) { return e.row_bytes / sonde_dtype_bytes(e.dtype); }

// Says whether a source holds the rows [0, end).
bool holds(const sonde_copy &c, uint64_t row_bytes, uint64_t end) {
    if (end == 0) return true;
    uint64_t last = 0, bytes = 0;
    return !__builtin_mul_overflow(end - 1, c.row_stride, &last) && !__builtin_add_overflow(last, row_bytes, &bytes) &&
           bytes <= c.src_bytes;
}

// Checks the runs of a copy and counts their rows.
sonde_status check_runs(const sonde_copy &c, uint32_t index, uint64_t row_bytes, uint64_t *rows) {
    *rows = 0;
    for (uint32_t i = 0; i < c.run_count; i++) {
        const uint64_t end = uint64_t{c.runs[i].first_row} + c.runs[i].count;
        if (c.runs[i].count > 0 && !holds(c, row_bytes, end))
            return fail(
                SONDE_INVALID,
                "copy rows: run %u of copy %u ends with row %llu, of %llu bytes at a stride of %llu; the source "
                "has %llu bytes",
                i, index, Number{end - 1}, Number{row_bytes}, Number{c.row_stride}, Number{c.src_bytes});
        *rows += c.runs[i].count;
    }
    return SONDE_OK;
}

// Checks the chosen rows of a copy against the number of rows of its runs.
sonde_status check_chosen(const sonde_copy &c, uint32_t index, uint64_t run_rows) {
    for (uint32_t i = 0; i < c.row_count; i++)
        if (c.rows[i] >= run_rows || (i > 0 && c.rows[i] <= c.rows[i - 1]))
            return fail(SONDE_INVALID,
                        "copy rows: row %u of copy %u is %u; want rising numbers below the %llu of its runs", i, index,
                        c.rows[i], Number{run_rows});
    return SONDE_OK;
}

sonde_status check_copy(const OpenStep &step, const sonde_copy &c, uint32_t index) {
    if (c.layout_index >= step.count || c.entry >= step.plans[c.layout_index].layout->entries.size())
        return fail(SONDE_INVALID,
                    "copy rows: copy %u goes to entry %u of layout index %u, which the step does not have", index,
                    c.entry, c.layout_index);
    const Plan &plan = step.plans[c.layout_index];
    const LayoutEntry &e = plan.layout->entries[c.entry];
    if (e.ragged)
        return fail(SONDE_INVALID, "copy rows: entry %u of layout index %u is ragged; write its span", c.entry,
                    c.layout_index);
    if (!can_cast(e.dtype, c.src_dtype))
        return fail(SONDE_INVALID,
                    "copy rows: copy %u has dtype %u and its entry %u; they must be equal, or floating "
                    "types that are cast to f32, f16 or bf16",
                    index, c.src_dtype, e.dtype);
    if ((c.runs == nullptr && c.run_count > 0) || (c.rows == nullptr && c.row_count > 0))
        return fail(SONDE_INVALID, "copy rows: copy %u counts runs or rows that are NULL", index);
    uint64_t rows = 0;
    const uint64_t row_bytes = row_elements(e) * sonde_dtype_bytes(c.src_dtype);
    if (const sonde_status s = check_runs(c, index, row_bytes, &rows); s != SONDE_OK) return s;
    if (rows > 0 && c.src == nullptr) return fail(SONDE_INVALID, "copy rows: the source of copy %u is NULL", index);
    if (c.rows != nullptr) {
        if (const sonde_status s = check_chosen(c, index, rows); s != SONDE_OK) return s;
        rows = c.row_count;
    }
    if (rows == plan.rows(c.entry)) return SONDE_OK;
    return fail(SONDE_INVALID, "copy rows: copy %u gives %llu rows; entry %u of layout index %u has %llu in this step",
                index, Number{rows}, c.entry, c.layout_index, Number{plan.rows(c.entry)});
}

// Where one copy has come to.
struct Rows {
    const sonde_copy &copy;
    const LayoutEntry &entry;
    uint8_t *to;

    // Copies consecutive rows of the source.
    void take(uint64_t first, uint64_t count) {
        const auto *from = static_cast<const uint8_t *>(copy.src) + first * copy.row_stride;
        const uint64_t elements = row_elements(entry), row_bytes = elements * sonde_dtype_bytes(copy.src_dtype);
        if (copy.row_stride == row_bytes) { // rows without gaps are one long one
            take_row(from, elements * count);
            return;
        }
        for (; count > 0; count--, from += copy.row_stride) take_row(from, elements);
    }

private:
    void take_row(const uint8_t *from, uint64_t elements) {
        (void)sonde_cast(to, entry.dtype, from, copy.src_dtype, elements); // check_copy has looked at the types
        to += elements * sonde_dtype_bytes(entry.dtype);
    }
};

void copy_runs(Rows rows) {
    for (uint32_t i = 0; i < rows.copy.run_count; i++) rows.take(rows.copy.runs[i].first_row, rows.copy.runs[i].count);
}

// Copies the chosen rows: neighbours in one go.
void copy_chosen(Rows rows) {
    const sonde_copy &c = rows.copy;
    uint64_t before = 0; // rows of the runs before this one
    uint32_t i = 0;
    for (uint32_t run = 0; run < c.run_count && i < c.row_count; run++) {
        while (i < c.row_count && c.rows[i] < before + c.runs[run].count) {
            const uint32_t first = i;
            for (i++; i < c.row_count && c.rows[i] == c.rows[i - 1] + 1 && c.rows[i] < before + c.runs[run].count;) i++;
            rows.take(c.runs[run].first_row + (c.rows[first] - before), i - first);
        }
        before += c.runs[run].count;
    }
}

} // namespace

sonde_status sonde_writer::copy_rows(const sonde_copy *copies, uint32_t count) const {
    if (!step_.open) return fail(SONDE_STATE, "copy rows: no step is open");
    for (uint32_t i = 0; i < count; i++)
        if (const sonde_status s = check_copy(step_, copies[i], i); s != SONDE_OK) return s;
    for (uint32_t i = 0; i < count; i++) {
        const sonde_copy &c = copies[i];
        auto *to = static_cast<uint8_t *>(step_span(c.layout_index, c.entry, nullptr));
        if (to == nullptr) continue; // dropped
        const Rows rows{c, step_.plans[c.layout_index].layout->entries[c.entry], to};
        if (c.rows == nullptr) {
            copy_runs(rows);
        } else {
            copy_chosen(rows);
        }
    }
    return SONDE_OK;
}
