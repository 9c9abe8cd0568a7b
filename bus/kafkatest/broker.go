// Package kafkatest starts a real Apache Kafka broker in KRaft mode for tests and
// trials, kills it and starts it again. `make kafka` fetches its jars once.
package kafkatest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sonde/bus/wiretest"
	"sonde/internal/notrun"
)

// Options configures a broker.
type Options struct {
	Dir    string   // for its data, configuration and log
	Lines  []string // of server.properties, after ours
	Secure string   // protocol of a second listener, like SASL_SSL; "": none
	Format []string // further arguments of the tool that formats the storage
	JVM    []string // further options of the virtual machine
}

// Broker is a broker process. Its addresses stay the same over restarts.
type Broker struct {
	Address string // of the plain listener, host:port
	Secured string // of the second listener
	o       Options
	lib     string

	wiretest.Process
}

const (
	clusterID = "c29uZGUtdGVzdC1jbHVzdA"
	// readyTimeout covers a slow machine; a start takes about 6 seconds on two idle
	// cores, and after a kill 10, as the controller first forgets the dead broker.
	readyTimeout = 2 * time.Minute
)

// Missing says what a broker needs and this machine lacks; "" when it can start.
func Missing() string {
	if _, err := exec.LookPath("java"); err != nil {
		return "a Kafka broker needs java, and none was found"
	}
	if lib, err := jars(); err != nil || lib == "" {
		return "a Kafka broker needs its jars in build/kafka/lib; make kafka fetches them"
	}
	return ""
}

// jars is the folder of the jars below the root of the module.
func jars() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod above the working folder")
		}
		dir = up
	}
	lib := filepath.Join(dir, "build", "kafka", "lib")
	found, err := filepath.Glob(filepath.Join(lib, "kafka_*.jar"))
	if err != nil || len(found) == 0 {
		return "", err
	}
	return lib, nil
}

// Need starts a broker for a test, and stops it when the test ends. Where it cannot
// run, the test is marked as not run.
func Need(t testing.TB, o Options) *Broker {
	t.Helper()
	if why := Missing(); why != "" {
		notrun.Mark(t, why)
	}
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	b, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Kill)
	return b
}

// Start formats a store in o.Dir and starts a broker on it, and returns once it
// answers.
func Start(o Options) (*Broker, error) {
	lib, err := jars()
	if err != nil {
		return nil, err
	}
	ports, err := wiretest.FreePorts(3)
	if err != nil {
		return nil, err
	}
	b := &Broker{Address: ports[0], Secured: ports[2], o: o, lib: filepath.Join(lib, "*")}
	if err := b.configure(ports[1]); err != nil {
		return nil, err
	}
	args := append([]string{"-Xmx256m", "-cp", b.lib, "-Dlog4j2.configurationFile=" + b.path("log4j2.properties"),
		"kafka.tools.StorageTool", "format", "-t", clusterID, "-c", b.path("server.properties")}, o.Format...)
	if out, err := exec.Command("java", args...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("format the broker's store: %w: %s", err, out)
	}
	return b, b.Up()
}

func (b *Broker) path(name string) string { return filepath.Join(b.o.Dir, name) }

const logging = `rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %m (%c)%n
`

func (b *Broker) configure(controller string) error {
	listeners, protocols := "PLAINTEXT://"+b.Address, "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"
	if b.o.Secure != "" {
		listeners += ",SECURED://" + b.Secured
		protocols += ",SECURED:" + b.o.Secure
	}
	lines := []string{
		"process.roles=broker,controller", "node.id=1",
		"controller.quorum.voters=1@" + controller,
		"listeners=" + listeners + ",CONTROLLER://" + controller,
		"advertised.listeners=" + listeners,
		"controller.listener.names=CONTROLLER", "inter.broker.listener.name=PLAINTEXT",
		"listener.security.protocol.map=" + protocols,
		"log.dirs=" + b.path("logs"),
		"offsets.topic.replication.factor=1", "offsets.topic.num.partitions=4",
		"transaction.state.log.replication.factor=1", "transaction.state.log.min.isr=1",
		"share.coordinator.state.topic.replication.factor=1", "share.coordinator.state.topic.min.isr=1",
		"group.initial.rebalance.delay.ms=0", "auto.create.topics.enable=false",
		// A broker that was killed is let in again sooner than after the default of 9 s.
		"broker.session.timeout.ms=2000", "broker.heartbeat.interval.ms=500",
	}
	text := strings.Join(append(lines, b.o.Lines...), "\n") + "\n"
	return errors.Join(os.MkdirAll(b.o.Dir, 0o755), os.WriteFile(b.path("server.properties"), []byte(text), 0o600),
		os.WriteFile(b.path("log4j2.properties"), []byte(logging), 0o644))
}

// Up starts the broker and returns once it answers.
func (b *Broker) Up() error {
	args := append([]string{"-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-Dlog4j2.configurationFile=" + b.path("log4j2.properties")}, b.o.JVM...)
	cmd := exec.Command("java", append(args, "-cp", b.lib, "kafka.Kafka", b.path("server.properties"))...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	ready := make(chan struct{})
	exited, err := b.Launch(cmd, func() { b.follow(bufio.NewScanner(out), ready) })
	if err != nil {
		return err
	}
	select {
	case <-ready:
		return nil
	case <-exited:
		return fmt.Errorf("the broker ended at its start; see %s", b.path("broker.log"))
	case <-time.After(readyTimeout):
		b.Kill()
		return fmt.Errorf("the broker is not ready after %s; see %s", readyTimeout, b.path("broker.log"))
	}
}

// follow copies the broker's log until it ends, and notices that it is ready.
func (b *Broker) follow(lines *bufio.Scanner, ready chan struct{}) {
	log, err := os.OpenFile(b.path("broker.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		defer log.Close()
	}
	lines.Buffer(nil, 1<<20)
	told := false
	for lines.Scan() {
		if log != nil {
			fmt.Fprintln(log, lines.Text())
		}
		if !told && strings.Contains(lines.Text(), "Kafka Server started") {
			close(ready)
			told = true
		}
	}
}
