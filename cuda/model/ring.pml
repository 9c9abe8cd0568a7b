/*
 * The protocol of the ring (ring2/ABI.md sections 3 and 4) for spin: a writer that claims steps of one STEP and one
 * CAPTURE,
 * publishes them in any order STEP first, drops what finds no room, and wakes the reader; a reader that polls,
 * arms, blocks and releases step by step; an agent that dies at any moment and a successor that reads again from
 * the release word.
 *
 * Memory is sequentially consistent here, except where a reordering is the point: payload and commit are separate
 * steps, and the planted bugs move one of them. Checked: every record is read whole, in order and, per agent, once;
 * nothing that was not released is overwritten; nobody sleeps for ever while the other could go on (invalid end
 * state); the release word stops at step boundaries.
 *
 *   make test-spin     checks the model, and that each planted bug (-DBUG=1 to 4) is found
 *     1 publish before the payload is written    2 reclaim up to the claim instead of the release word
 *     3 no second look after arming              4 release in the middle of a step
 */
#ifndef BUG
#define BUG 0
#endif
#ifndef DESCS
#define DESCS 4  /* slots; with 2, one step fills the ring, and a wake-up that is lost is lost for ever */
#endif
#define STEPS 5  /* of the writer; each has two records */
#define DEATHS 1 /* of agents */

byte commit[DESCS];  /* seq + 1 when published; sequence numbers do not wrap here */
byte payload[DESCS]; /* seq + 1 of the record whose bytes lie there; 0: being written */
bit capture[DESCS];  /* kind of the record */
byte release_seq = 0, claim_seq = 0;
bit need_wakeup = 0, writer_done = 0, agent_alive = 0;
byte deaths = 0;
bit event = 0; /* the eventfd: it saturates */

byte claim = 0, tail = 0, released = 0; /* of the writer */

inline write_payload(seq) {
    payload[(seq) % DESCS] = 0; /* from here on a reader would see a torn record */
    payload[(seq) % DESCS] = (seq) + 1
}

inline publish(seq) {
    commit[(seq) % DESCS] = (seq) + 1
}

inline finish(seq) {
    if
    :: BUG == 1 -> publish(seq); write_payload(seq)
    :: else -> write_payload(seq); publish(seq)
    fi
}

inline wake() {
    atomic { /* one read-modify-write */
        was = need_wakeup;
        need_wakeup = 0
    };
    if
    :: was -> event = 1
    :: else -> skip
    fi
}

inline reclaim() {
    word = release_seq;
    if
    :: word >= released && word <= claim && (word == claim || !capture[word % DESCS]) -> released = word
    :: else -> assert(false) /* no reader of this model writes nonsense */
    fi;
    tail = (BUG == 2 -> claim : released)
}

proctype writer() {
    byte steps = 0, word;
    bit was;
    do
    :: steps == STEPS -> break
    :: else ->
        reclaim();
        if
        :: claim - tail + 2 <= DESCS -> /* claim both, then publish STEP, then CAPTURE */
            d_step {
                capture[claim % DESCS] = 0;
                capture[(claim + 1) % DESCS] = 1;
                claim = claim + 2
            };
            claim_seq = claim;
            finish(claim - 2);
            wake();
            finish(claim - 1);
            wake();
            steps++
        :: else ->
            if
            :: steps++                            /* dropped and counted */
            :: true -> release_seq != released    /* mode complete: waits for the reader to move */
            fi
        fi
    od;
    writer_done = 1;
    event = 1 /* end of file on the socket ends the reader's nap as well */
}

proctype agent() {
    byte next = release_seq, boundary = release_seq;
    bit gone, was_capture;
    do
    :: commit[next % DESCS] == next + 1 ->
        assert(payload[next % DESCS] == next + 1);  /* whole */
        was_capture = capture[next % DESCS];
        assert(payload[next % DESCS] == next + 1);  /* and not overwritten while it was read */
        next++;
        assert(next <= claim_seq);
        if
        :: was_capture || BUG == 4 -> /* a step boundary, unless the bug */
            boundary = next;
            if
            :: release_seq = boundary
            :: skip /* released later, with a following step or before the nap */
            fi
        :: else -> skip
        fi
    :: else ->
        gone = writer_done; /* asked before the ring is read for the last time */
        if
        :: commit[next % DESCS] == next + 1 -> skip
        :: else ->
            if
            :: gone -> break
            :: else -> skip
            fi;
            release_seq = boundary;
            need_wakeup = 1; /* one read-modify-write */
            if
            :: BUG != 3 && commit[next % DESCS] == next + 1 -> need_wakeup = 0
            :: else -> atomic { event -> event = 0 }; need_wakeup = 0
            fi
        fi
    :: deaths < DEATHS -> /* SIGKILL, at any of its steps */
        deaths++;
        goto dead
    od;
    assert(next == claim_seq); /* nothing that was published is left behind */
dead:
    agent_alive = 0
}

/* Starts an agent, and its successor after its death: the writer then takes back what the dead one left in its
   zone. */
init {
    atomic {
        run writer();
        agent_alive = 1;
        run agent()
    };
    do
    :: agent_alive == 0 && deaths > 0 ->
        atomic {
            deaths = DEATHS + 1;
            need_wakeup = 0;
            agent_alive = 1;
            run agent()
        };
        break
    :: agent_alive == 0 && deaths == 0 -> break
    od;
    agent_alive == 0
}
