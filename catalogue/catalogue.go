// Package catalogue is the one list of what a running Sonde shows of itself: every
// metric, the endpoints that serve them, and what /readyz asks. A metric is made by
// its name here and takes its type, labels and meaning from here; METRICS.md is
// written from this file.
package catalogue

//go:generate go run ./page

// Metric is a metric as it is exported. Its name ends in its unit, before _total:
// bytes, seconds, or the thing that is counted.
type Metric struct {
	Name   string
	Type   Type
	Labels []Label
	Help   string // what it means, a phrase without a full stop
}

// Type is the type of a metric.
type Type string

// The types.
const (
	counter   Type = "counter"
	gauge     Type = "gauge"
	histogram Type = "histogram"
)

// Label of a metric. Values are all that it can have; none: they come from
// outside, like the name of a bundle.
type Label struct {
	Name   string
	Values []string
}

// Section is the metrics of one part.
type Section struct {
	Name    string
	Note    string // about its labels, in Markdown
	Metrics []Metric
}

// Endpoint is a path that a process serves with GET.
type Endpoint struct {
	Path   string
	Server string // the command that serves it
	Help   string // what its answer means
}

// Paths of the endpoints.
const (
	PathMetrics = "/metrics"
	PathLive    = "/livez"
	PathReady   = "/readyz"
	PathHealth  = "/healthz"
)

// Endpoints lists all endpoints that say how a process is.
var Endpoints = []Endpoint{
	{PathMetrics, "sonde run, sonde engine", "the metrics of this page, in the text format of Prometheus"},
	{PathLive, "sonde run", "200 while the process answers at all. Restart it when it does not. An outage of the broker " +
		"does not show here: a restart would not end it"},
	{PathReady, "sonde run", "200 when each check below holds; else 503 and one line for each that does not: what it " +
		"waits for, and what to do"},
	{PathHealth, "sonde engine", "200 while the engine takes requests; 503 while it stops"},
}

// Check is a question that /readyz asks about one part of a process. A process
// asks only about the parts that it runs, and about the bus.
type Check struct {
	Part  string
	Holds string // what is so when it is ready
	Do    string // what a person does when it stays otherwise
}

// Checks lists all checks.
var Checks = []Check{
	{"bus", "the broker can be reached, and an embedded one can write its store",
		"start the broker that bus.url or bus.kafka names, or make room on the disk of bus.embedded.store_dir; " +
			"the rest goes on by itself"},
	{"agent", "engines can attach at agent.socket, and what they capture is published",
		"mend the bus first, if that is not ready either; then read the last lines of the log"},
	{"materializer", "what was published is committed to the dataset",
		"make room on the disk of materializer.lake, or make the folder writable; the rest goes on by itself"},
	{"detector", "each bundle judges the rows that it is bound to",
		"compare the binding in detector.yaml with the model, and with the hooks and layers that the policy keeps"},
}

var gpuLabels = []Label{{Name: "gpu"}, {Name: "uuid"}, {Name: "name"}}

// Sections lists all metrics.
var Sections = []Section{
	{"bus", "", []Metric{
		{"sonde_bus_published_messages_total", counter, nil, "messages handed over for publication"},
		{"sonde_bus_published_bytes_total", counter, nil, "bytes of the messages handed over for publication"},
		{"sonde_bus_acknowledged_messages_total", counter, nil, "messages that the broker acknowledged"},
		{"sonde_bus_duplicate_acknowledgements_total", counter, nil,
			"acknowledgements of a message that the broker had stored before"},
		{"sonde_bus_refused_messages_total", counter, nil,
			"messages that can never be taken: too large, or of a subject that is not the stream's"},
		{"sonde_bus_repeated_messages_total", counter, nil, "messages published again after a failure"},
		{"sonde_bus_publish_failures_total", counter, []Label{{"reason", []string{"full", "unavailable",
			"timeout", "disconnected", "order"}}},
			"events that made the window start anew"},
		{"sonde_bus_window_bytes", gauge, nil,
			"bytes published and not acknowledged; at its bound, publishing waits"},
		{"sonde_bus_connected", gauge, nil, "1 while the broker can be reached"},
		{"sonde_bus_connections_total", counter, nil, "connections made to the broker"},
		{"sonde_bus_delivered_messages_total", counter, nil, "messages read from the stream"},
		{"sonde_bus_delivered_bytes_total", counter, nil, "bytes of the messages read from the stream"},
		{"sonde_bus_unheard_messages_total", counter, nil,
			"live messages that a slow listener missed; it reads them from the stream, later"},
		{"sonde_bus_requests_total", counter, []Label{{"outcome", []string{"answered", "nobody", "failed"}}},
			"commands sent"},
		{"sonde_bus_stream_bytes", gauge, nil, "size of the stream, at most 5 seconds old"},
		{"sonde_bus_stream_max_bytes", gauge, nil, "bound of the stream; beyond it, publishing waits"},
		{"sonde_bus_stream_messages", gauge, nil, "messages in the stream"},
		{"sonde_bus_store_failed", gauge, nil,
			"1 while the embedded bus cannot write its store, as on a full disk; /readyz says why"},
		{"sonde_bus_store_reopened_total", counter, nil,
			"times that the embedded bus opened its store anew, once the disk took writes again"},
	}},
	{"engine", "", []Metric{
		{"sonde_engine_steps_total", counter, nil, "steps computed"},
		{"sonde_engine_step_seconds", histogram, nil,
			"time of a step: planning, capture, computing, sampling; without --step-delay"},
		{"sonde_engine_step_sequences_max", gauge, nil, "most sequences that one step has computed"},
		{"sonde_engine_tokens_total", counter, []Label{{"phase", []string{"prefill", "decode", "recompute"}}},
			"tokens computed"},
		{"sonde_engine_preemptions_total", counter, nil,
			"sequences that lost their KV blocks to an older one and are computed again"},
		{"sonde_engine_prefix_hit_tokens_total", counter, nil,
			"tokens that were not computed since the prefix cache had them"},
		{"sonde_engine_prefill_chunks_total", counter, nil,
			"chunks of prompts that were split over several steps"},
		{"sonde_engine_samples_total", counter, nil, "sequences of requests with more than one sample"},
		{"sonde_engine_requests_total", counter, []Label{{"reason", []string{"stop", "length", "abort",
			"disconnect", "error", "detector"}}},
			"sequences that ended"},
		{"sonde_engine_aborts_total", counter, []Label{{"outcome", []string{"stopped", "finished", "unknown"}}},
			"aborts asked for, over HTTP or through the ring"},
		{"sonde_engine_ring_captured_rows_total", counter, nil,
			"rows offered at the hooks, dropped ones included"},
		{"sonde_engine_ring_dropped_rows_total", counter, []Label{{"reason", []string{"no_slot",
			"no_space", "oversize", "control_full", "budget", "spool_full", "disabled"}}},
			"rows that the ring did not take"},
		{"sonde_engine_ring_aborted_rows_total", counter, nil, "rows whose copy failed"},
		{"sonde_engine_ring_unnamed_rows_total", counter, nil, "dropped rows that no record had room to name"},
		{"sonde_engine_ring_stalls_total", counter, nil, "steps that waited for room (mode complete)"},
		{"sonde_engine_ring_stall_seconds_total", counter, nil, "time that steps waited for room"},
		{"sonde_engine_ring_exhausted_steps_total", counter, nil,
			"steps that used up their stall budget and dropped"},
		{"sonde_engine_ring_refused_releases_total", counter, nil,
			"release words of the agent that could not be right"},
		{"sonde_engine_ring_control_lost_total", counter, nil, "control records that the full queue refused"},
		{"sonde_engine_ring_pending_control_records", gauge, nil,
			"control records and missing ranges that wait for room"},
		{"sonde_engine_ring_used_descriptors", gauge, nil, "records that the agent has not released"},
		{"sonde_engine_ring_journal_bytes", gauge, nil, "size of the journal"},
		{"sonde_engine_ring_journal_unnamed_total", counter, nil, "records that the full journal did not take"},
		{"sonde_engine_ring_obituaries_total", counter, nil, "records of dead epochs sent to the agent"},
		{"sonde_engine_ring_attached", gauge, nil, "1 while an agent is attached"},
		{"sonde_engine_ring_attaches_total", counter, nil, "agents that attached"},
	}},
	{"consumers/detector", "Label `detector` is the name of a bundle.", []Metric{
		{"sonde_detector_rows_total", counter, []Label{{Name: "detector"}, {"result", []string{"scored",
			"repeated", "other_phase", "nonfinite", "invalid", "unbound", "unopened", "other_adapter"}}},
			"rows of the bound hook and layer, by what became of them"},
		{"sonde_detector_missing_tokens_total", counter, []Label{{Name: "detector"}},
			"tokens that the binding covers and that never came: gaps, and what a prefix cache served"},
		{"sonde_detector_alerts_total", counter, []Label{{Name: "detector"}, {Name: "level"}, {Name: "mode"}},
			"levels that a request crossed"},
		{"sonde_detector_aborts_total", counter, []Label{{Name: "detector"}, {"outcome",
			[]string{"stopped", "finished", "unknown", "error", "expired", "breaker"}}},
			"requests to be stopped, by what came of it; the last two asked nobody"},
		{"sonde_detector_tensor_to_verdict_seconds", histogram, []Label{{Name: "detector"}},
			"from the claim of the step in the engine to the verdict, for each token; both are wall clocks"},
		{"sonde_detector_tensor_to_abort_seconds", histogram, []Label{{Name: "detector"}},
			"from the claim of the step to the engine's answer to the abort"},
		{"sonde_detector_unseen_requests_total", counter, []Label{{Name: "detector"}},
			"requests that ended and of which no row of the bound hook arrived"},
		{"sonde_detector_ready", gauge, []Label{{Name: "detector"}},
			"1 when the detector judges what it should; /readyz says why not"},
		{"sonde_detector_breaker_open", gauge, []Label{{Name: "detector"}},
			"1 when too large a share of requests was to be stopped: alerts go on, aborts do not"},
		{"sonde_detector_samples", gauge, nil, "samples of requests whose state is held"},
		{"sonde_detector_evictions_total", counter, []Label{{"reason", []string{"ended", "idle", "full", "moved"}}},
			"states of samples forgotten"},
		{"sonde_detector_stream_events_total", counter, []Label{{"event", []string{"gap", "trimmed",
			"recreated", "undecodable", "forged", "unheard"}}},
			"what was wrong with messages or with the stream"},
		{"sonde_detector_unpublished_total", counter, []Label{{"reason", []string{"queue_full",
			"refused", "closed"}}},
			"detections that could not be published and are in the log alone"},
	}},
	{"materializer and lake", "", []Metric{
		{"sonde_materializer_messages_total", counter, nil, "messages read from the stream"},
		{"sonde_materializer_rows_stored_total", counter, []Label{{Name: "table"}}, "rows committed"},
		{"sonde_materializer_duplicate_rows_total", counter, nil, "rows dropped because the table has them"},
		{"sonde_materializer_dead_letters_total", counter, nil,
			"messages that could not be decoded, kept or not"},
		{"sonde_materializer_dead_letters_discarded_total", counter, nil,
			"undecodable messages that were not kept: the folder is full, missing or not writable"},
		{"sonde_materializer_lag_messages", gauge, []Label{{Name: "partition"}},
			"messages in a partition of the stream, which this process has, that the table does not have"},
		{"sonde_materializer_oldest_uncommitted_seconds", gauge, nil,
			"age of the oldest message that was read and is not committed; 0: there is none"},
		{"sonde_materializer_commit_seconds", histogram, nil,
			"from starting a commit until it is durable, retries included"},
		{"sonde_materializer_commit_failures_total", counter, nil,
			"attempts to commit that failed and were repeated; nothing is read meanwhile"},
		{"sonde_materializer_trimmed_messages_total", counter, nil,
			"messages trimmed from the stream before the table had them: their rows are lost"},
		{"sonde_materializer_streams_recreated_total", counter, nil,
			"streams that were read from their start because the table was made from another one"},
		{"sonde_materializer_chains", gauge, nil, "chains whose state is in memory"},
		{"sonde_materializer_forgotten_spans_total", counter, nil,
			"spans dropped from memory at the bound of a chain; the table is asked about their rows"},
		{"sonde_materializer_table_lookups_total", counter, nil,
			"messages for which the table was asked which rows it has"},
		{"sonde_lake_version", gauge, nil, "newest entry of the lake's log"},
		{"sonde_lake_files_total", counter, []Label{{Name: "table"}}, "data files committed"},
		{"sonde_lake_bytes_total", counter, []Label{{Name: "table"}}, "bytes of the data files committed"},
		{"sonde_lake_swept_files_total", counter, nil,
			"files of dead writers, named by no commit, that were removed"},
	}},
	{"sharing work", "Label `group` is `materializer` or `detector`.", []Metric{
		{"sonde_group_members", gauge, []Label{{Name: "group", Values: []string{"materializer", "detector"}}},
			"processes that share this work, this one included"},
		{"sonde_group_partitions", gauge, []Label{{Name: "group", Values: []string{"materializer", "detector"}}},
			"partitions of the stream that this process has"},
		{"sonde_group_rebalances_total", counter, []Label{{Name: "group", Values: []string{"materializer", "detector"}}},
			"partitions that this process took, or gave to another one"},
		{"sonde_group_fenced_total", counter, []Label{{Name: "group", Values: []string{"materializer", "detector"}}},
			"partitions that another process took over: what was open for them was dropped, and read again there"},
	}},
	{"spool", "", []Metric{
		{"sonde_spool_bytes", gauge, nil, "size of the spool on disk; 0 while the bus takes everything"},
		{"sonde_spool_max_bytes", gauge, nil, "bound of the spool; at it, agent.spool.when_full decides"},
		{"sonde_spool_messages", gauge, nil, "messages in the spool that the bus has not acknowledged"},
		{"sonde_spool_failed", gauge, nil, "1 while the spool cannot be written, as on a full disk; /readyz says why"},
		{"sonde_spool_unreadable_files", gauge, nil,
			"files in its folder that are no segments of this version; they stay there and are not published"},
		{"sonde_spool_written_messages_total", counter, nil, "messages written, facts about discarded ones included"},
		{"sonde_spool_written_bytes_total", counter, nil, "bytes written"},
		{"sonde_spool_drained_messages_total", counter, nil, "messages that the bus acknowledged from the spool"},
		{"sonde_spool_discarded_messages_total", counter, nil,
			"messages of which rows were discarded because the spool was full; facts name the rows"},
		{"sonde_spool_damaged_messages_total", counter, nil,
			"messages that the disk gave back changed, or not at all; facts name the rows of those that can be named"},
		{"sonde_spool_torn_bytes_total", counter, nil,
			"bytes behind the last whole record of segments that an agent was killed at"},
	}},
	{"producer", "Rows are rows of the ledger: those that the policy chose. `engine` and `rank` name a rank over " +
		"restarts of its writer.", []Metric{
		{"sonde_producer_rows_total", counter, []Label{{Name: "engine"}, {Name: "rank"}, {"class",
			[]string{"acknowledged", "dropped", "aborted", "lost", "dead_lettered", "filtered"}}, {Name: "reason"}},
			"rows by what became of them, and why they were dropped; filtered ones stand beside the law"},
		{"sonde_producer_captured_rows", gauge, []Label{{Name: "engine"}, {Name: "rank"}},
			"rows that the policy chose: all classes but filtered, and what is in flight; those of a rank " +
				"that detaches leave it, and are counted when they are read again"},
		{"sonde_producer_inflight_rows", gauge, []Label{{Name: "engine"}, {Name: "rank"}},
			"rows read and not settled"},
		{"sonde_producer_inflight_bytes", gauge, []Label{{Name: "engine"}, {Name: "rank"}},
			"bytes published and not acknowledged"},
		{"sonde_producer_held_bytes", gauge, []Label{{Name: "engine"}, {Name: "rank"}},
			"payload bytes read and not released in the ring"},
		{"sonde_producer_ring_records", gauge, []Label{{Name: "engine"}, {Name: "rank"}},
			"records in the ring that are not released: how far the agent is behind"},
		{"sonde_producer_oldest_batch_seconds", gauge, []Label{{Name: "engine"}, {Name: "rank"}},
			"age of the oldest open batch"},
		{"sonde_producer_messages_total", counter, []Label{{Name: "kind"}}, "messages published"},
		{"sonde_producer_message_bytes_total", counter, []Label{{Name: "kind"}},
			"bytes of the messages published"},
		{"sonde_producer_refused_messages_total", counter, []Label{{Name: "kind"}},
			"messages that the bus refused for good"},
		{"sonde_producer_aborts_total", counter, []Label{{"outcome", []string{"stopped", "finished",
			"unknown", "error"}}},
			"abort commands served"},
		{"sonde_producer_unserved_aborts_total", counter, nil,
			"tenants whose aborts are not served, because there are too many or the bus failed"},
		{"sonde_producer_ranks", gauge, nil, "ranks attached"},
		{"sonde_producer_attached_total", counter, nil, "sessions taken"},
		{"sonde_producer_detached_total", counter, nil, "sessions given up before the end of their epoch"},
		{"sonde_producer_quarantined_total", counter, nil, "rings whose records made no sense"},
		{"sonde_producer_epochs_closed_total", counter, nil, "epochs whose closed fact is acknowledged"},
		{"sonde_producer_steps_total", counter, nil, "steps expanded"},
		{"sonde_producer_corrupt_captures_total", counter, nil, "captures that did not fit their layout"},
		{"sonde_producer_bad_obituaries_total", counter, nil,
			"journal records of dead writers that made no sense"},
		{"sonde_producer_dead_letter_files", gauge, nil, "files in the dead-letter directory"},
		{"sonde_producer_dead_letter_bytes", gauge, nil, "bytes of the files in the dead-letter directory"},
	}},
	{"sonde-nvml", "Served by the program of that name alone. Label `gpu` is its index of this boot, `name` that of its " +
		"make. What a GPU does not tell has no series.", []Metric{
		{"sonde_nvml_busy_ratio", gauge, gpuLabels, "share of time in which a kernel ran"},
		{"sonde_nvml_memory_busy_ratio", gauge, gpuLabels,
			"share of time in which device memory was read or written"},
		{"sonde_nvml_memory_used_bytes", gauge, gpuLabels, "device memory in use"},
		{"sonde_nvml_memory_total_bytes", gauge, gpuLabels, "device memory"},
		{"sonde_nvml_pcie_sent_bytes_per_second", gauge, gpuLabels, "from the GPU to the host"},
		{"sonde_nvml_pcie_received_bytes_per_second", gauge, gpuLabels, "from the host to the GPU"},
		{"sonde_nvml_pcie_replays_total", counter, gpuLabels, "transfers that were repeated"},
		{"sonde_nvml_sm_clock_hertz", gauge, gpuLabels, "clock of the multiprocessors"},
		{"sonde_nvml_memory_clock_hertz", gauge, gpuLabels, "clock of device memory"},
		{"sonde_nvml_power_watts", gauge, gpuLabels, "electrical power"},
		{"sonde_nvml_temperature_celsius", gauge, gpuLabels, "of the chip"},
		{"sonde_nvml_throttle_reasons", gauge, gpuLabels, "bits of nvml.h that say why clocks are low"},
		{"sonde_nvml_ecc_corrected_total", counter, gpuLabels, "errors of memory that were corrected"},
		{"sonde_nvml_ecc_uncorrected_total", counter, gpuLabels, "errors of memory that were not"},
		{"sonde_nvml_xid_errors_total", counter, gpuLabels, "XID errors since the program runs"},
	}},
}
