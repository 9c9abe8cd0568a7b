package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"sonde/bus"
	"sonde/consumers/materializer"
	"sonde/lakehouse/commitlog"
)

// busToParquet is section c.
func (b *bench) busToParquet(ctx context.Context) (*section, error) {
	s := &section{Title: "bus to Parquet: from a full stream to a committed lake, every file synced",
		header: []string{"data", "message", "MB/s", "to arrow-go's bare writer", "noise", "to parquet-go's (its size)",
			"to pyarrow's", "CPU to bare", "size of bf16"}}
	s.notef("The bare writers get the same columns, decoded, and write the same rows, encodings and codec, synced too.")
	hidden, err := b.hiddenStates(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range []*corpus{hidden, randomCorpus(b.sizes.lakeBytes)} {
		for _, size := range b.sizes.messageBytes {
			if err := b.lakeOf(ctx, s, c, size, c == hidden); err != nil {
				return nil, fmt.Errorf("%s, messages of %s: %w", c.name, sizeName(size), err)
			}
		}
	}
	s.afterf("MB/s and size are of the rows as bf16. The CPU of ours includes the embedded bus that is read from.")
	return s, nil
}

// hiddenStates makes the corpus of the model once.
func (b *bench) hiddenStates(ctx context.Context) (*corpus, error) {
	if b.hidden == nil && ctx.Err() == nil {
		b.progress.Show("c: running the model for its hidden states")
		c, err := hiddenStates(b.model, b.sizes.lakeBytes)
		if err != nil {
			return nil, err
		}
		b.hidden = c
	}
	return b.hidden, ctx.Err()
}

// lakeOf compares for one corpus and one size of messages.
func (b *bench) lakeOf(ctx context.Context, s *section, c *corpus, size int, real bool) error {
	dir, err := b.folder("lake")
	if err != nil {
		return err
	}
	messages, subject, rows, err := c.messages(size)
	if err != nil {
		return err
	}
	l, err := fillStream(ctx, dir, subject, messages)
	if err != nil {
		return err
	}
	defer l.close()
	if _, err := l.materialize(ctx); err != nil { // its files are what the bare writers write again
		return err
	}
	raw := float64(rows * c.rowBytes())
	files, bytes, err := l.files(rows)
	if err != nil {
		return err
	}
	bare, err := readColumns(files)
	if err != nil {
		return err
	}
	out, other := filepath.Join(dir, "bare.parquet"), filepath.Join(dir, "parquet-go.parquet")
	arms := []arm{{"ours", l.materialize}, {"bare", timed(func(context.Context) error { return bare.writeArrow(out) })},
		{"bare again", timed(func(context.Context) error { return bare.writeArrow(out) })},
		{"parquet-go", timed(func(context.Context) error { return bare.writeParquetGo(other) })}}
	python, err := b.pyarrow(ctx, files, filepath.Join(dir, "pyarrow.parquet"))
	if err != nil {
		return err
	}
	if python != nil {
		defer python.close()
		arms = append(arms, arm{"pyarrow", python.write})
	}
	r, err := b.compare(ctx, fmt.Sprintf("c: %s, messages of %s", c.name, sizeName(size)), arms...)
	if err != nil {
		return err
	}
	info, err := os.Stat(other)
	if err != nil {
		return err
	}
	b.lakeRow(s, c, size, real, r, [2]float64{float64(bytes) / raw, float64(info.Size()) / raw}, raw)
	return nil
}

// lakeRow judges one comparison. shares are our size and that of parquet-go's file,
// as shares of raw.
func (b *bench) lakeRow(s *section, c *corpus, size int, real bool, r rounds, shares [2]float64, raw float64) {
	share := shares[0]
	kind := "random"
	if real {
		kind = "hidden"
	}
	id := fmt.Sprintf("c.%s.%s.", kind, sizeID(size))
	speed := figure{ID: id + "speed_to_bare", spread: r.speed("ours", "bare"), Unit: "ratio"}.atLeast(0.8)
	other := figure{ID: id + "speed_to_parquet_go", spread: r.speed("ours", "parquet-go"), Unit: "ratio"}
	bytes := figure{ID: id + "size_to_raw", spread: spread{share, share, share}, Unit: "ratio"}
	sizeText := fmt.Sprintf("%.3f", share)
	if real {
		bytes = bytes.atMost(0.72)
		sizeText += fmt.Sprintf("  <= 0.72: %s", bytes.verdict())
	}
	rate := figure{ID: id + "mb_per_s", spread: r.rate("ours", raw/1e6), Unit: "MB/s"}
	cpu := figure{ID: id + "cpu_to_bare", spread: r.cpu("ours", "bare"), Unit: "ratio"}
	noise := r.noise("bare", "bare again")
	s.keep(speed, other, bytes, rate, cpu,
		figure{ID: id + "noise", spread: spread{noise, noise, noise}, Unit: "share"})
	pyarrow := "NOT RUN"
	if len(r["pyarrow"]) > 0 {
		f := figure{ID: id + "speed_to_pyarrow", spread: r.speed("ours", "pyarrow"), Unit: "ratio"}
		s.keep(f)
		pyarrow = ratio(f.spread)
	}
	s.row(c.name, sizeName(size), fmt.Sprintf("%.0f", rate.Median), judged(speed), percent(noise),
		fmt.Sprintf("%s (%.3f)", ratio(other.spread), shares[1]), pyarrow, ratio(cpu.spread), sizeText)
}

func sizeID(size int) string {
	if size >= 1<<20 {
		return fmt.Sprintf("%dMiB", size>>20)
	}
	return fmt.Sprintf("%dKiB", size>>10)
}

// filled is a stream that holds the messages, and the folder of the lakes that are
// made from it.
type filled struct {
	dir         string
	server      *bus.EmbeddedServer
	bus         *bus.NATS
	first, next uint64
	commitBytes int64
	lake        string // of the last run
	runs        int
}

// commits is how many commits the messages are divided into.
const commits = 2

// fillStream publishes messages into a stream of its own.
func fillStream(ctx context.Context, dir, subject string, messages [][]byte) (l *filled, err error) {
	l = &filled{dir: dir}
	quiet := slog.New(slog.DiscardHandler)
	l.server, err = bus.StartEmbedded(bus.EmbeddedOptions{StoreDir: filepath.Join(dir, "bus"), Logger: quiet})
	if err != nil {
		return nil, err
	}
	if l.bus, err = bus.OpenNATS(ctx, bus.NATSOptions{Embedded: l.server, Logger: quiet}); err != nil {
		return nil, errors.Join(err, l.server.Close())
	}
	acks := make(chan error, len(messages))
	least := len(messages[0])
	for _, m := range messages {
		least = min(least, len(m))
		err := l.bus.Publish(ctx, bus.Message{Subject: subject, Data: m}, func(_ uint64, err error) { acks <- err })
		if err != nil {
			l.close()
			return nil, err
		}
	}
	for range messages {
		err = errors.Join(err, <-acks)
	}
	info, infoErr := l.bus.Info(ctx, 0)
	if err := errors.Join(err, infoErr); err != nil {
		l.close()
		return nil, err
	}
	l.first, l.next = info.First, info.Last+1
	// Messages are of almost the same size, so that each commit gets an equal share of
	// them, and nothing is left over that would wait for the commit interval.
	l.commitBytes = int64(max(len(messages)/commits, 1) * least)
	return l, nil
}

func (l *filled) close() { _ = errors.Join(l.bus.Close(), l.server.Close()) } // what it held is thrown away

// materialize makes a lake of the stream, until everything is committed.
func (l *filled) materialize(ctx context.Context) (sample, error) {
	if err := os.RemoveAll(l.lake); err != nil {
		return sample{}, fmt.Errorf("remove the lake before: %w", err)
	}
	l.runs++
	l.lake = filepath.Join(l.dir, fmt.Sprintf("lake-%d", l.runs))
	m, err := materializer.New(materializer.Options{Bus: l.bus, Lake: l.lake, CommitInterval: 10 * time.Second,
		CommitBytes: l.commitBytes, RetainBytes: 1 << 40, Settle: -1}) // alone
	if err != nil {
		return sample{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	cpu, began := processCPU(), time.Now()
	go func() { done <- m.Run(ctx) }()
	for m.Committed(0).Next < l.next {
		select {
		case err := <-done:
			return sample{}, errors.Join(errors.New("the materializer ended before the end of the stream"), err)
		case <-time.After(100 * time.Microsecond):
		}
	}
	s := sample{time.Since(began).Seconds(), processCPU() - cpu}
	cancel()
	return s, <-done
}

// files are the Parquet files of the last lake, which must hold so many rows.
func (l *filled) files(rows int) (paths []string, bytes int64, err error) {
	state, err := commitlog.Load(l.lake)
	if err != nil {
		return nil, 0, err
	}
	stored := 0
	for _, f := range state.Files {
		paths = append(paths, filepath.Join(l.lake, filepath.FromSlash(f.Path)))
		bytes += f.Bytes
		stored += int(f.Rows)
	}
	if stored != rows {
		return nil, 0, fmt.Errorf("the lake holds %d rows of %d", stored, rows)
	}
	return paths, bytes, nil
}
