// Kafka runs a command beside a real Kafka broker that it starts, and kills and
// restarts in the middle when asked to.
//
//	go run ./trials/kafka -kill 8s -- build/sonde demo --kafka {broker}
//
// {broker} in the command is the address. With -secure, {secured} is that of a listener
// for those who bring a certificate, {dir}/client.pem and {dir}/client.key signed by
// {dir}/ca.pem, and the password of the user sonde in the variable SONDE_BUS_PASSWORD,
// which is set. The exit code is that of the command; 3 when there is no broker.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"sonde/bus/kafkatest"
	"sonde/config"
)

const exitNoBroker = 3

func main() {
	kill := flag.Duration("kill", 0, "kill the broker with SIGKILL after so long, and start it again at once; 0: never")
	again := flag.Int("kills", 1, "how often to do that")
	secure := flag.Bool("secure", false, "add a listener with TLS, client certificates and passwords")
	flag.Parse()
	code, err := run(*kill, *again, *secure, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
	}
	os.Exit(code)
}

func run(kill time.Duration, kills int, secure bool, command []string) (code int, err error) {
	if len(command) == 0 {
		return 2, errors.New("give a command after --, with {broker} for the broker's address")
	}
	if why := kafkatest.Missing(); why != "" {
		fmt.Println("NOT RUN:", strings.Join(command, " ")+":", why)
		return exitNoBroker, nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "sonde-kafka-")
	if err != nil {
		return exitNoBroker, err
	}
	defer os.RemoveAll(dir)
	fmt.Fprintln(os.Stderr, "starting a Kafka broker")
	o := kafkatest.Options{Dir: dir}
	if secure {
		if o, err = kafkatest.Secured(dir); err != nil {
			return exitNoBroker, err
		}
		o.Lines = append(o.Lines, "allow.everyone.if.no.acl.found=true")
	}
	broker, err := kafkatest.Start(o)
	if err != nil {
		return exitNoBroker, err
	}
	defer broker.Kill()
	fill := strings.NewReplacer("{broker}", broker.Address, "{secured}", broker.Secured, "{dir}", dir)
	for i := range command {
		command[i] = fill.Replace(command[i])
	}
	c := exec.Command(command[0], command[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), config.PasswordVariable+"="+kafkatest.Password)
	if err := c.Start(); err != nil {
		return exitNoBroker, err
	}
	context.AfterFunc(ctx, func() { _ = c.Process.Signal(os.Interrupt) }) // It may have ended.
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	for n := 0; ; n++ {
		var due <-chan time.Time
		if kill > 0 && n < kills {
			due = time.After(kill)
		}
		select {
		case <-ended:
			return c.ProcessState.ExitCode(), nil
		case <-due:
		}
		broker.Kill()
		began := time.Now()
		if err := broker.Up(); err != nil {
			return exitNoBroker, err
		}
		fmt.Fprintf(os.Stderr, "\nkilled the broker; it was away for %.1f s\n", time.Since(began).Seconds())
	}
}
