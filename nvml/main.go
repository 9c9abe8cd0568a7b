// Command sonde-nvml notes the state of the GPUs beside what Sonde captures. It is a program of its own because NVML
// needs cgo, which the rest does without.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sonde/nvml/gauges"
)

const usage = `Notes utilisation, PCIe traffic, memory, clocks, power, ECC and XID errors of each GPU.

  sonde-nvml                         a line for each GPU and second on standard output
  sonde-nvml -out gpu.jsonl          into a file of at most 64 MiB, and one more of that size before it
  sonde-nvml -listen 127.0.0.1:9465  the newest values at /metrics, for Prometheus

Each line holds the wall clock in ns, as capture_ns of rows does, so that a query lays it beside them. It stops on
Ctrl-C. Exit codes: 0 stopped, 1 there is no driver or no GPU, or the file or address cannot be used, 2 wrong usage.

`

type options struct {
	out, listen string
	every       time.Duration
	bound       int64
}

func main() {
	o := options{}
	flag.StringVar(&o.out, "out", "", "file of samples, one JSON object a line (default standard output, without -listen)")
	flag.Int64Var(&o.bound, "out-bytes", 64<<20, "size at which the file is renamed to FILE.1 and begun anew")
	flag.StringVar(&o.listen, "listen", "", "address of /metrics (default none)")
	flag.DurationVar(&o.every, "every", time.Second, "time between samples, from 100ms")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 || o.every < 100*time.Millisecond || o.bound < 1<<16 {
		fmt.Fprintln(os.Stderr, "sonde-nvml: it takes no arguments; -every is at least 100ms, -out-bytes at least 65536")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o, nvml.New())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sonde-nvml:", err)
		os.Exit(1)
	}
}

// run samples until ctx ends.
func run(ctx context.Context, o options, lib nvml.Interface) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("ask for the name of this host: %w", err)
	}
	source, err := gauges.Open(lib, host)
	if err != nil {
		return err
	}
	defer source.Close()
	metrics := &gauges.Metrics{}
	if o.listen != "" {
		stop, err := serve(o.listen, metrics)
		if err != nil {
			return err
		}
		defer stop()
	}
	var lines *gauges.Lines
	if o.out != "" || o.listen == "" {
		path := o.out
		if path == "" {
			path = "/dev/stdout"
			o.bound = 1 << 62
		}
		if lines, err = gauges.OpenLines(path, o.bound); err != nil {
			return err
		}
		defer func() { _ = lines.Close() }() // each line was written when it was made
	}
	tick := time.NewTicker(o.every)
	defer tick.Stop()
	for {
		samples := source.Read(time.Now())
		metrics.Set(samples)
		if lines != nil {
			if err := lines.Write(samples); err != nil {
				fmt.Fprintln(os.Stderr, "sonde-nvml:", err) // the disk may have room again by the next one
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// serve answers /metrics until stop is called.
func serve(address string, metrics *gauges.Metrics) (stop func(), err error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for /metrics: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "sonde-nvml: /metrics:", err)
		}
	}()
	return func() { _ = server.Close() }, nil
}
