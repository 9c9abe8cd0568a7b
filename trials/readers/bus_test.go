package readers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/kafkatest"
	"sonde/internal/notrun"
	"sonde/schema"
)

// howTo is the page whose programs are run here as they are written there, but for the
// address of the broker.
const (
	howTo        = "../../docs/how-to/read-the-bus.md"
	brokerOfPage = "127.0.0.1:9092"
	// pageLines is how many lines a program on the page may have.
	pageLines = 15
)

// program writes a program of the page into a folder.
func program(t *testing.T, dir, name, address string) string {
	t.Helper()
	page, err := os.ReadFile(howTo)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)<!-- file: " + regexp.QuoteMeta(name) + " -->\n```[a-z]+\n(.*?)```").FindSubmatch(page)
	if block == nil || !strings.Contains(string(block[1]), brokerOfPage) {
		t.Fatalf("%s has no %s that reads from %s", howTo, name, brokerOfPage)
	}
	text := string(block[1])
	if n := strings.Count(text, "\n"); n > pageLines {
		t.Errorf("%s has %d lines; want at most %d", name, n, pageLines)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, brokerOfPage, address)), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// filledTopic is a broker with every kind of message in the topic SONDE, and what stands
// in it: subjects in order.
func filledTopic(t *testing.T) (address string, subjects []string) {
	t.Helper()
	server := kafkatest.Need(t, kafkatest.Options{})
	b, err := bus.OpenKafka(t.Context(), bus.KafkaOptions{Brokers: []string{server.Address}, Stream: "SONDE"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	files, err := filepath.Glob("../../schema/testdata/frozen-1/*.arrow")
	if err != nil || len(files) == 0 {
		t.Fatalf("no messages: %v", err)
	}
	for _, file := range files {
		message, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		h, err := schema.DecodeHeader(message)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		m := bus.Message{Subject: schema.Subject(h), Data: message}
		if err := b.Publish(t.Context(), m, func(_ uint64, err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		subjects = append(subjects, m.Subject)
	}
	return server.Address, subjects
}

// runs gives the lines that a program prints.
func runs(t *testing.T, path string, command ...string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Env = append(os.Environ(), "PATH="+path+":"+os.Getenv("PATH"))
	var complaints strings.Builder
	c.Stderr = &complaints
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%q: %v\n%s\n%s", command, err, out, complaints.String())
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// The fear: data on Kafka that only our own programs read.
func TestProgramsOfThePageReadATopic(t *testing.T) {
	address, subjects := filledTopic(t)
	t.Run("kafka-console-consumer", func(t *testing.T) {
		lib, err := filepath.Abs("../../build/kafka/lib")
		if err != nil {
			t.Fatal(err)
		}
		if found, err := filepath.Glob(filepath.Join(lib, "kafka-tools-*.jar")); err != nil || len(found) == 0 {
			notrun.Mark(t, "kafka-console-consumer needs kafka-tools in build/kafka/lib; make kafka fetches it")
		}
		dir := t.TempDir()
		// In a distribution of Kafka this is the script of that name.
		tool := fmt.Sprintf("#!/bin/sh\nexec java -cp '%s/*' org.apache.kafka.tools.consumer.ConsoleConsumer \"$@\"\n", lib)
		if err := os.WriteFile(filepath.Join(dir, "kafka-console-consumer"), []byte(tool), 0o755); err != nil {
			t.Fatal(err)
		}
		got := runs(t, dir, "sh", program(t, dir, "console.sh", address))
		// What says that the time is over goes to stderr in a distribution, which configures a log.
		got = slices.DeleteFunc(got, func(line string) bool { return !strings.HasPrefix(line, "sonde.") })
		if !slices.Equal(got, subjects) {
			t.Errorf("it prints\n%q\nwant\n%q", got, subjects)
		}
	})
	t.Run("confluent-kafka", func(t *testing.T) {
		python := "../../.venv/bin/python"
		if exec.Command(python, "-c", "import confluent_kafka, pyarrow").Run() != nil {
			notrun.Mark(t, "needs .venv with confluent-kafka and pyarrow; make test-python makes it")
		}
		got := runs(t, "", python, program(t, t.TempDir(), "read_topic.py", address))
		want := []string{"resid_post bf16 req-0 [100, 101, 102, 103, 104, 105]", "resid_post bf16 req-0 [100]",
			"attn_pattern f32 req-0 [100, 101, 102, 103]"}
		if !slices.Equal(got, want) {
			t.Errorf("it prints\n%q\nwant\n%q", got, want)
		}
	})
}
