package config

import (
	"fmt"
	"net"
	"strconv"
)

func (w *walk) checkKafka(b Bus) {
	k := b.Kafka
	if _, written := w.lines["bus.kafka"]; !written {
		return
	}
	if !b.UsesKafka() {
		w.missing("bus.kafka", "bus.kafka.brokers", "Kafka without brokers; write brokers: [host:9092]")
	}
	for i, broker := range k.Brokers {
		host, port, err := net.SplitHostPort(broker)
		if n, portErr := strconv.Atoi(port); err != nil || portErr != nil || host == "" || n < 1 || n > 65535 {
			w.wrong(fmt.Sprintf("bus.kafka.brokers[%d]", i), "not an address; write host:port like kafka1:9092")
		}
	}
	if b.URL != "" {
		w.wrong("bus.url", "there is bus.kafka too; remove one of the two")
	}
	if _, both := w.lines["bus.embedded"]; both && b.URL == "" {
		w.wrong("bus.embedded", "the embedded bus does not run beside bus.kafka; remove one of the two")
	}
	if k.MaxBytes != 0 {
		w.least("bus.kafka.max_bytes", int64(k.MaxBytes), 16<<20)
		if k.RetainBytes > k.MaxBytes {
			w.wrong("bus.kafka.retain_bytes", fmt.Sprintf("more than bus.kafka.max_bytes = %s; write less", k.MaxBytes))
		}
	}
	w.between("bus.kafka.replicas", k.Replicas)
	w.between("bus.kafka.min_insync_replicas", k.MinInSyncReplicas)
	if k.Replicas > 0 && k.MinInSyncReplicas > k.Replicas {
		w.wrong("bus.kafka.min_insync_replicas", "more than bus.kafka.replicas: nothing could be stored; write less")
	}
	w.checkKafkaLogin(b)
}

func (w *walk) checkKafkaLogin(b Bus) {
	k := b.Kafka
	w.oneOf("bus.kafka.sasl", k.SASL)
	switch {
	case k.SASL == "none" && (b.User != "" || b.PasswordFile != ""):
		w.missing("bus.kafka", "bus.kafka.sasl", "a login, and no way to prove it; write scram-sha-512, or remove bus.user")
	case k.SASL != "none" && b.User == "":
		w.missing("bus", "bus.user", "bus.kafka.sasl without a user; write bus.user, and the password into "+
			PasswordVariable+" or the file named by bus.password_file")
	case k.SASL == "plain" && !k.TLS.Enabled:
		w.wrong("bus.kafka.sasl", "sends the password in the clear; write bus.kafka.tls.enabled: true, or scram-sha-512")
	}
	w.checkTLS("bus.kafka.tls", k.TLS, k.TLS.Enabled)
}
