package bus

import "fmt"

// Broadcast implements Bus.
func (n *NATS) Broadcast(subject string, data []byte) error {
	if err := CheckBroadcast(subject, data); err != nil {
		return err
	}
	c := n.link.now()
	switch {
	case n.link.ctx.Err() != nil:
		return ErrClosed
	case c == nil:
		return fmt.Errorf("broadcast on %s: the bus is not connected", subject)
	}
	if err := c.nc.Publish(subject, data); err != nil {
		return fmt.Errorf("broadcast on %s: %w", subject, err)
	}
	return nil
}

// Listen implements Bus.
func (n *NATS) Listen(subject string, hear func(data []byte)) (stop func(), err error) {
	if err := CheckBroadcast(subject, nil); err != nil {
		return nil, err
	}
	return n.Hear([]string{subject}, func(_ string, data []byte) { hear(data) })
}
