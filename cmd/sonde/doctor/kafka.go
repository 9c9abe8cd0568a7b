package doctor

import (
	"context"
	"strings"

	"sonde/bus"
	"sonde/cmd/sonde/pipeline"
	"sonde/config"
)

// reachKafka looks for the cluster of the configuration. It is nil when none answers.
func reachKafka(ctx context.Context, c *config.Config) (*bus.Broker, []Finding) {
	o, err := pipeline.KafkaOptions(c.Bus)
	if err != nil {
		return nil, one(Fail, "bus", err.Error(), "")
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	broker, err := bus.ProbeKafka(ctx, o)
	shown := strings.Join(o.Brokers, ", ")
	if err != nil {
		return nil, one(Fail, "bus", shown+" cannot be used: "+err.Error(),
			"start the cluster, or change bus.kafka and bus.user")
	}
	return &broker, append(append(one(OK, "bus", shown+" answers, Kafka", ""), brokerLimits(c, &broker)...),
		differences(c, "topic", &broker)...)
}
