#include "payload.h"

#include <initializer_list>

namespace sonde {

uint64_t selected_rows(const sonde_range *ranges, uint32_t count, uint32_t layout_index, uint8_t select) {
    uint64_t rows = 0;
    for (uint32_t i = 0; i < count; i++) {
        const sonde_range &r = ranges[i];
        if ((r.layout_mask >> layout_index & 1) == 0) continue;
        if (select == SONDE_SELECT_ALL) {
            rows += r.count;
        } else if (r.sampled != 0) {
            rows++;
        }
    }
    return rows;
}

void encode_model(Bytes &b, const sonde_model &m) {
    b.clear();
    for (const char *text : {m.name, m.revision, m.weights_digest, m.quantisation, m.engine, m.engine_version})
        put_text(b, text_of(text));
    put(b, m.layers);
    put(b, m.d_model);
    put(b, m.vocab);
}

void encode_layout(Bytes &b, const Layout &layout) {
    b.clear();
    put(b, layout.id);
    put(b, static_cast<uint32_t>(layout.entries.size()));
    for (const LayoutEntry &e : layout.entries) {
        put_text(b, e.hook);
        put(b, e.layer);
        put(b, e.dtype);
        put(b, e.select);
        put(b, static_cast<uint8_t>(e.ragged));
        put(b, static_cast<uint8_t>(e.shape.size()));
        for (uint32_t d : e.shape) put(b, d);
        put(b, e.shard);
        put(b, e.shard_count);
    }
}

void encode_request(Bytes &b, const sonde_request &r, uint64_t now_wall_ns) {
    b.clear();
    put(b, r.number);
    put_text(b, text_of(r.external_id));
    put_text(b, text_of(r.engine_id));
    put(b, r.sample);
    put_text(b, text_of(r.tenant));
    put_text(b, text_of(r.adapter));
    put_text(b, text_of(r.trace_parent));
    put(b, static_cast<uint8_t>(r.opt_in));
    put(b, r.prompt_tokens);
    put(b, r.max_tokens);
    put(b, r.open_wall_ns != 0 ? r.open_wall_ns : now_wall_ns);
    put(b, static_cast<uint16_t>(r.label_count));
    for (uint32_t i = 0; i < r.label_count; i++) {
        put_text(b, text_of(r.labels[i].key));
        put_text(b, text_of(r.labels[i].value));
    }
}

void encode_end(Bytes &b, const sonde_request_end &e, uint64_t now_wall_ns) {
    b.clear();
    put(b, e.number);
    for (uint32_t v : {e.prompt_tokens, e.generated_tokens, e.cached_tokens, e.passes}) put(b, v);
    put(b, static_cast<uint8_t>(e.finish));
    put(b, e.end_wall_ns != 0 ? e.end_wall_ns : now_wall_ns);
}

void encode_amend(Bytes &b, uint64_t step, const sonde_amend_range *ranges, uint32_t count) {
    b.clear();
    put(b, step);
    put(b, count);
    for (uint32_t i = 0; i < count; i++) {
        const sonde_amend_range &r = ranges[i];
        put(b, r.number);
        for (uint32_t v : {r.position, r.count, r.pass}) put(b, v);
        put(b, static_cast<uint8_t>(r.verdict));
        put_zero(b, 3);
    }
}

void encode_step(Bytes &b, uint64_t step, const StepLayout *layouts, uint32_t layout_count, const sonde_range *ranges,
                 uint32_t range_count) {
    b.clear();
    put(b, step);
    put(b, static_cast<uint16_t>(layout_count));
    for (uint32_t i = 0; i < layout_count; i++) {
        put(b, layouts[i].layout);
        put(b, layouts[i].outcome);
        put_zero(b, 3);
        put(b, layouts[i].capture_seq);
    }
    put(b, range_count);
    for (uint32_t i = 0; i < range_count; i++) {
        const sonde_range &r = ranges[i];
        put(b, r.number);
        for (uint32_t v : {r.position, r.count, r.pass}) put(b, v);
        put(b, r.phase);
        put(b, static_cast<uint8_t>(r.sampled != 0));
        put_zero(b, 2);
        put(b, r.layout_mask);
    }
}

void encode_missing(Bytes &b, const MissingRange *ranges, uint32_t count) {
    b.clear();
    put(b, count);
    for (uint32_t i = 0; i < count; i++) {
        const MissingRange &r = ranges[i];
        put(b, r.number);
        for (uint32_t v : {r.position, r.count, r.pass, r.layout}) put(b, v);
        put(b, r.reason);
        put_zero(b, 3);
        for (uint64_t v : {r.rows, r.first_step, r.last_step}) put(b, v);
    }
}

} // namespace sonde
