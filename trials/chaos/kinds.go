package main

import (
	"context"
	"slices"
	"time"
)

// busName is a bus that a run uses.
type busName string

// The buses.
const (
	onNATS    busName = "nats"    // the embedded server, in a process of its own
	onCluster busName = "cluster" // three nats-servers with JetStream, three replicas
	onKafka   busName = "kafka"   // a real broker
)

var allBuses = []busName{onNATS, onCluster, onKafka}

// kind is one way to do harm.
type kind struct {
	name  string
	group string    // faults of one group never overlap
	mixes bool      // it may overlap one of another group
	buses []busName // nil: all
	// holdMS bounds how long it lasts.
	holdMS [2]int
	// limit is the stated time from its end until new rows of every engine are in the
	// dataset; where a node of the broker has to come back, brokerStart comes on top.
	limit     time.Duration
	restarts  bool // it ends with a start of a node of the broker, or with a node that was away
	leaveDead bool // a node may die of it, and is started by its supervisor
	run       func(ctx context.Context, w *world, f fault) error
}

// brokerStart is what the return of a node adds to a limit: a Kafka broker reads its log
// and waits until the controller forgets it; a node of a cluster catches up with the
// others, and what it serves meanwhile lags behind.
const brokerStart = 2 * time.Minute

func (k *kind) has(on busName) bool { return k.buses == nil || slices.Contains(k.buses, on) }

// within is the stated time of recovery on a bus.
func (k *kind) within(on busName) time.Duration {
	if on != onNATS && (k.restarts || k.leaveDead) {
		return k.limit + brokerStart
	}
	return k.limit
}

// Groups of faults.
const (
	process = "process"
	network = "network"
	disks   = "disk"
	clocks  = "clock"
)

// The stated times. They are wall time, and hold on a machine of two cores that is busy
// with other things; the result says how much of it was needed.
const (
	soon      = time.Minute
	afterLost = 2 * time.Minute // a client first has to notice that nobody is there
)

var (
	moment  = [2]int{0, 2000}
	short   = [2]int{300, 3000}
	seconds = [2]int{2000, 6000}
	// long is longer than each timeout between the parts: 5 s of a question and of a
	// member of a group, 20 s until a silent connection is given up.
	long = [2]int{22_000, 26_000}
)

var kinds = slices.Concat(processKinds, networkKinds, diskKinds, otherKinds)

var processKinds = []kind{
	{name: "kill -9 engine", group: process, mixes: true, holdMS: moment, limit: soon, run: killEngine},
	{name: "kill -9 agent", group: process, mixes: true, holdMS: moment, limit: soon, run: killAgent},
	{name: "kill -9 consumer", group: process, mixes: true, holdMS: moment, limit: soon, run: killConsumer},
	{name: "kill -9 broker", group: process, mixes: true, holdMS: moment, limit: afterLost, restarts: true,
		run: killBroker},
	{name: "kill -9 leader", group: process, mixes: true, buses: []busName{onCluster}, holdMS: short, limit: afterLost,
		restarts: true, run: killLeader},
	{name: "kill -9 two of three nodes", group: process, mixes: true, buses: []busName{onCluster}, holdMS: seconds,
		limit: afterLost, restarts: true, run: killQuorum},
	{name: "kill -9 engine and agent", group: process, mixes: true, holdMS: moment, limit: soon, run: killBothEnds},
	{name: "kill -9 agent, bus away", group: process, holdMS: seconds, limit: afterLost, run: killAgentWithSpool},
	{name: "kill -9 everything", group: process, holdMS: moment, limit: afterLost, restarts: true, run: killEverything},
	{name: "SIGSTOP engine", group: process, mixes: true, holdMS: short, limit: soon, run: freezeEngine},
	{name: "SIGSTOP agent", group: process, mixes: true, holdMS: short, limit: soon, run: freezeAgent},
	{name: "SIGSTOP consumer", group: process, mixes: true, holdMS: short, limit: soon, run: freezeConsumer},
	{name: "SIGSTOP broker", group: process, mixes: true, holdMS: short, limit: afterLost, restarts: true,
		run: freezeBroker},
	{name: "SIGSTOP leader", group: process, mixes: true, buses: []busName{onCluster}, holdMS: seconds, limit: afterLost,
		restarts: true, run: freezeLeader},
	{name: "SIGSTOP agent, past timeouts", group: process, holdMS: long, limit: soon, run: freezeAgent},
	{name: "SIGSTOP consumer, past timeouts", group: process, holdMS: long, limit: soon, run: freezeConsumer},
	{name: "SIGSTOP broker, past timeouts", group: process, holdMS: long, limit: afterLost, restarts: true,
		run: freezeBroker},
	{name: "SIGSTOP engine, past timeouts", group: process, holdMS: long, limit: soon, run: freezeEngine},
}

var networkKinds = []kind{
	{name: "reset (RST)", group: network, mixes: true, holdMS: moment, limit: soon, run: resetLinks},
	{name: "orderly end (FIN)", group: network, mixes: true, holdMS: moment, limit: soon, run: finishLinks},
	{name: "refused", group: network, mixes: true, holdMS: seconds, limit: soon, run: refuseLinks},
	{name: "cut in mid-message", group: network, mixes: true, holdMS: seconds, limit: soon, run: cutLinks},
	{name: "away and back", group: network, mixes: true, holdMS: seconds, limit: soon, run: holdLinks},
	{name: "half open", group: network, mixes: true, holdMS: seconds, limit: afterLost, run: swallowLinks},
	{name: "half open, past timeouts", group: network, holdMS: long, limit: afterLost, run: swallowLinks},
	{name: "answers lost", group: network, mixes: true, holdMS: seconds, limit: afterLost, run: swallowAnswers},
	{name: "latency", group: network, mixes: true, holdMS: seconds, limit: soon, run: delayLinks},
	{name: "few bytes a second", group: network, mixes: true, holdMS: seconds, limit: soon, run: slowLinks},
	{name: "turned bits", group: network, buses: []busName{onCluster, onKafka}, holdMS: seconds, limit: afterLost,
		run: corruptLinks},
}

var otherKinds = []kind{
	{name: "clock jumps", group: clocks, mixes: true, holdMS: seconds, limit: soon, run: jumpClock},
	{name: "consumer leaves", group: process, holdMS: short, limit: soon, run: leaveGroup},
	{name: "consumer joins and leaves", group: process, mixes: true, holdMS: seconds, limit: soon, run: joinGroup},
}
