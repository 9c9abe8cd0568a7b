// The CPU build has no device ring.

#include "fail.h"

namespace {

sonde_status unsupported() {
    return sonde::fail(SONDE_UNSUPPORTED, "this libsonde was built without CUDA; build it where nvcc is");
}

} // namespace

extern "C" {

int32_t sonde_has_cuda(void) { return 0; }

sonde_status sonde_device_open(sonde_writer *, const sonde_device_options *, sonde_device **device) {
    if (device != nullptr) *device = nullptr;
    return unsupported();
}

sonde_status sonde_device_plan(sonde_device *, uint32_t, uint32_t) { return unsupported(); }
sonde_status sonde_device_tap(sonde_device *, uint32_t, const void *, uint64_t) { return unsupported(); }
sonde_status sonde_device_taps(sonde_device *, const sonde_tap *, uint32_t) { return unsupported(); }
sonde_status sonde_device_gather_early(sonde_device *, void *) { return unsupported(); }
sonde_status sonde_device_join(sonde_device *, void *) { return unsupported(); }
sonde_status sonde_device_gather(sonde_device *, void *) { return unsupported(); }
sonde_status sonde_device_arm(sonde_device *, uint32_t, void *) { return unsupported(); }
sonde_status sonde_device_get_stats(sonde_device *, sonde_device_stats *) { return unsupported(); }
sonde_status sonde_device_close(sonde_device *, uint64_t) { return SONDE_OK; }

} // extern "C"
