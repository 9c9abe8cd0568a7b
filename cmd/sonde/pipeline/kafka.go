package pipeline

import (
	"context"
	"errors"

	"sonde/bus"
	"sonde/config"
)

// openKafka connects to the cluster of the configuration.
func (p *Pipeline) openKafka(ctx context.Context) error {
	if p.has(RoleBus) && len(p.o.Roles) == 1 {
		return errors.New("start the role bus: bus.kafka names a cluster of your own, so there is nothing to run here")
	}
	o, err := KafkaOptions(p.o.Config.Bus)
	if err != nil {
		return err
	}
	o.WindowBytes, o.Logger, o.Registerer = int64(p.o.Config.Agent.InflightBytes), p.log, p.registry
	p.health.set("bus", func() string { return "not connected yet" })
	b, err := bus.OpenKafka(ctx, o)
	if err != nil {
		return err
	}
	p.use(b)
	return nil
}

// KafkaOptions is how the cluster of a configuration is reached.
func KafkaOptions(c config.Bus) (bus.KafkaOptions, error) {
	k := &c.Kafka
	o := bus.KafkaOptions{Brokers: k.Brokers, Stream: c.Stream, Partitions: c.Partitions,
		MaxBytes: int64(k.MaxBytes), Replicas: k.Replicas, MinInSync: k.MinInSyncReplicas,
		Security: bus.KafkaSecurity{TLS: k.TLS.Enabled, CAFile: k.TLS.CAFile, CertFile: k.TLS.CertFile,
			KeyFile: k.TLS.KeyFile}}
	if k.SASL == "none" {
		return o, nil
	}
	var err error
	o.Security.Mechanism, o.Security.User = k.SASL, c.User
	o.Security.Password, err = loginPassword(c)
	return o, err
}

// retainBytes is how much of the stream stays behind what the table has.
func retainBytes(c config.Bus) config.Size {
	if c.UsesKafka() {
		return c.Kafka.RetainBytes
	}
	return c.Embedded.RetainBytes
}
