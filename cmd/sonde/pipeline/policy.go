package pipeline

import (
	"sonde/config"
	"sonde/producer"
)

// policyOf turns the policy of the configuration into the agent's.
func policyOf(c config.Policy) producer.Policy {
	p := producer.Policy{Mode: producer.Mode(c.Mode), BudgetBytesPerS: int64(c.BudgetBytesPerS)}
	for _, r := range c.Rules {
		p.Rules = append(p.Rules, producer.Rule{
			Name: r.Name, Hooks: r.Hooks, Layers: producer.Layers(r.Layers), As: producer.As(r.As), Stride: r.Stride,
			Priority: r.Priority, Window: producer.Window(r.Window),
			Requests: producer.Requests{Tenants: r.Requests.Tenants, Labels: r.Requests.Labels,
				SamplePercent: r.Requests.SamplePercent, OptIn: r.Requests.OptIn}})
	}
	return p
}
