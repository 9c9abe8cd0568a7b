// An agent in C++ for tests of writers:
//   reader_peer SOCKET [die_after=RECORDS]
// Takes one engine, checks every row by its identity (rows.h), releases, and prints what it saw as JSON when the engine
// is gone. With die_after it kills itself, in the middle of whatever it was doing. Exit status: 0 everything was read,
// 1 a row is wrong, 2 wrong usage, 3 no engine came or its ring is of no use.

#include <csignal>

#include <cinttypes>
#include <cstring>
#include <string>

#include "agent.h"
#include "check.h"
#include "step_parser.h"

using namespace sonde;

int main(int argc, char **argv) {
    uint64_t die_after = 0, records = 0;
    if (argc < 2 || argc > 3 || (argc == 3 && std::sscanf(argv[2], "die_after=%" SCNu64, &die_after) != 1)) return 2;
    Agent agent(argv[1]);
    if (!agent.accept(20000)) {
        std::fprintf(stderr, "%s\n", agent.why().c_str());
        return 3;
    }
    ParsedStep step;
    uint64_t first = agent.core().next(), rows = 0, steps = 0, captures = 0, aborted = 0;
    bool bye = false;
    Agent::Next next = Agent::Next::record;
    for (Record r; (next = agent.next(&r, 20000)) == Agent::Next::record; agent.release(r.seq + 1)) {
        if (++records == die_after) std::raise(SIGKILL);
        bye = bye || r.kind == RING2_KIND_BYE;
        if (r.kind == RING2_KIND_STEP) {
            CHECK(parse_step(r.payload, r.bytes, &step));
            steps++;
        } else if (r.kind == RING2_KIND_CAPTURE && r.payload == nullptr) {
            aborted++;
        } else if (r.kind == RING2_KIND_CAPTURE) {
            rows += check_capture(r, step);
            captures++;
        }
    }
    std::printf("{\"first\":%" PRIu64 ",\"next\":%" PRIu64 ",\"rows\":%" PRIu64 ",\"steps\":%" PRIu64
                ",\"captures\":%" PRIu64 ",\"aborted\":%" PRIu64 ",\"lost\":%" PRIu64
                ",\"snapshot\":%zu,\"bye\":%s,\"end\":%s}\n",
                first, agent.core().next(), rows, steps, captures, aborted, agent.lost(), agent.snapshot().size(),
                bye ? "true" : "false", next == Agent::Next::end ? "true" : "false");
    return next == Agent::Next::end ? 0 : 3;
}
