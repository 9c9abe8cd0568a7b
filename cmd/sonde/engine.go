package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"sonde/config"
	"sonde/engine"
	"sonde/engine/arithmetic"
	"sonde/engine/bpe"
	"sonde/engine/llama"
	"sonde/engine/model"
	"sonde/ring2"
)

// engineFlags are the flags whose form differs from engine.Options.
type engineFlags struct {
	engine.Options
	model     string
	ringMode  string
	ringBytes sizeFlag
	threads   int
}

// sizeFlag reads a size like 64MiB.
type sizeFlag config.Size

func (s *sizeFlag) String() string { return config.Size(*s).String() }
func (s *sizeFlag) Type() string   { return "size" }

func (s *sizeFlag) Set(text string) error {
	size, err := config.ParseSize(text)
	*s = sizeFlag(size)
	return err
}

// arithmeticModel is the name of the model that needs no files.
const arithmeticModel = "arithmetic"

func engineCommand() *cobra.Command {
	f := engineFlags{Options: engine.Defaults(), ringMode: ring2.BestEffort.String()}
	f.ringBytes = sizeFlag(f.RingBytes)
	c := &cobra.Command{
		Use:   "engine",
		Short: "Run the reference engine: an OpenAI-compatible server whose insides are captured",
		Long: `Run the reference engine. It serves POST /v1/completions (also streaming), POST /v1/abort,
GET /v1/models, /healthz and /metrics, and hands what its model computes to the agent at
--ring-socket, which may start and stop at any time.

  sonde engine --model models/trilingual --ring-socket data/sonde.sock
  curl localhost:8000/v1/completions -d '{"prompt": "The package", "max_tokens": 40}'

--model arithmetic is the torture model: every value is a hash of its own identity, so that
each stored row proves where it belongs.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch f.ringMode {
			case ring2.BestEffort.String():
				f.RingMode = ring2.BestEffort
			case ring2.Complete.String():
				f.RingMode = ring2.Complete
			default:
				return usageError{fmt.Errorf("--ring-mode %q is unknown; use best_effort or complete", f.ringMode)}
			}
			f.RingBytes, f.Version = int(f.ringBytes), version()
			f.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
			f.Load = f.load
			return engine.Run(c.Context(), f.Options)
		},
	}
	f.register(c)
	return c
}

func (f *engineFlags) register(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.model, "model", "models/trilingual", "folder of a Llama in Hugging Face files, or arithmetic")
	flags.StringVar(&f.Listen, "listen", f.Listen, "address of the HTTP interface")
	flags.StringVar(&f.RingSocket, "ring-socket", config.Default().Agent.Socket, `socket of the agent; "" captures nothing`)
	flags.StringVar(&f.Instance, "instance", f.Instance, "name of this engine, the same for all its ranks")
	flags.IntVar(&f.Rank, "rank", f.Rank, "rank of this process, from 0")
	flags.IntVar(&f.Ranks, "ranks", f.Ranks, "ranks of the engine")
	flags.Var(&f.ringBytes, "ring-bytes", "payload of the ring, a power of two")
	flags.IntVar(&f.RingDescs, "ring-descs", f.RingDescs, "descriptors of the ring, a power of two")
	flags.StringVar(&f.ringMode, "ring-mode", f.ringMode,
		"best_effort drops when the ring is full; complete waits, up to the step stall budget")
	flags.StringVar(&f.StateDir, "state-dir", "", `folder of the journal that names what died with this process; "" is none`)
	flags.DurationVar(&f.WaitAgent, "wait-agent", f.WaitAgent, "how long to wait for an agent before serving")
	flags.StringVar(&f.WitnessDir, "witness", "", "folder where the engine writes down a hash of every row, past the ring")
	flags.StringSliceVar(&f.Hooks, "hooks", nil, "patterns of the hooks to capture, like resid_post,q; none: all")
	flags.IntVar(&f.KVBlocks, "kv-blocks", f.KVBlocks, "blocks of keys and values; few of them provoke preemption")
	flags.IntVar(&f.BlockTokens, "block-tokens", f.BlockTokens, "tokens of a block")
	flags.IntVar(&f.PrefillChunk, "prefill-chunk", f.PrefillChunk, "most prompt tokens in one step")
	flags.IntVar(&f.MaxBatch, "max-batch", f.MaxBatch, "most sequences in one step")
	flags.BoolVar(&f.PrefixCache, "prefix-cache", f.PrefixCache, "serve shared prompt prefixes from the cache")
	flags.Uint64Var(&f.Seed, "seed", f.Seed, "seed of requests that bring none")
	flags.DurationVar(&f.StepDelay, "step-delay", f.StepDelay, "pause after each step, for tests")
	flags.StringVar(&f.StepLog, "step-log", "", "file that gets one line a step: wall ns, duration ns, tokens, sequences")
	flags.IntVar(&f.threads, "threads", runtime.NumCPU(), "threads that compute")
}

// load loads the model and its tokenizer.
func (f *engineFlags) load() (model.Model, model.Tokenizer, error) {
	if f.model == arithmeticModel {
		return arithmetic.New(arithmetic.Options{}), arithmetic.Tokenizer{}, nil
	}
	if _, err := os.Stat(filepath.Join(f.model, "config.json")); err != nil {
		return nil, nil, fmt.Errorf("load model %s: %w; name a folder of Hugging Face files, or %s", f.model, err,
			arithmeticModel)
	}
	m, err := llama.Load(f.model, f.threads)
	if err != nil {
		return nil, nil, err
	}
	t, err := bpe.Load(filepath.Join(f.model, "tokenizer.json"))
	return m, t, err
}
