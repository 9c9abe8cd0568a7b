package detector

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
)

// Any mixture of live messages, lost ones, and the stream's late copies scores
// each token once and in order.
func TestLiveMessagesNeverCostATokenOrItsOrder(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 200 {
		k := newDesk(t, ModeShadow, draft())
		e := newEngine(t, testEpoch)
		stream := append([]bus.Delivery{e.open(1, "r", 4)}, e.text(1, "r", 4, make([]float32, 30)...)...)
		l := &live{}
		heard, read := 0, 0
		for read < len(stream) {
			switch {
			case heard < len(stream) && rng.IntN(3) > 0:
				if rng.IntN(4) > 0 { // else it is lost
					k.r.hear(context.Background(), l, stream[heard])
				}
				heard++
			case read < heard:
				k.feed(stream[read])
				k.r.resume(context.Background(), l)
				read++
			}
		}
		want := make([]int32, 30)
		for i := range want {
			want[i] = int32(4 + i)
		}
		if got := k.positions(); !slices.Equal(got, want) {
			t.Fatalf("seed %d: scored %v; want %v", seed, got, want)
		}
		if len(l.held) > 0 {
			t.Fatalf("seed %d: %d live messages are held for ever", seed, len(l.held))
		}
	}
}

// A stream whose disk hangs must not hold up a verdict.
func TestVerdictsDoNotWaitForTheDiskOfTheStream(t *testing.T) {
	b := newBus(t)
	k := newDesk(t, ModeShadow, draft())
	slow := &stalled{Bus: b, asked: make(chan struct{})}
	k.r.o.Bus = slow
	k.start(t)
	<-slow.asked                        // The stream is empty: there is nothing to catch up with.
	for epoch := uint64(1); ; epoch++ { // What was published before the runtime listened is never heard.
		e := newEngine(t, epoch)
		publish(t, b, append([]bus.Delivery{e.open(1, "r", 4)}, e.text(1, "r", 4, 0)...)...)
		time.Sleep(time.Millisecond)
		k.mu.Lock()
		scored := len(k.scores)
		k.mu.Unlock()
		if scored > 0 {
			return
		}
		if epoch == 5000 {
			t.Fatal("no verdict while the stream brings nothing")
		}
	}
}

// stalled is a bus whose stream brings nothing.
type stalled struct {
	*bustest.Bus
	once  sync.Once
	asked chan struct{} // closed once somebody asked about the stream
}

func (s *stalled) Info(ctx context.Context, partition int) (bus.StreamInfo, error) {
	info, err := s.Bus.Info(ctx, partition)
	s.once.Do(func() { close(s.asked) })
	return info, err
}

func (s *stalled) Subscribe(context.Context, bus.SubscribeOptions) (bus.Subscription, error) {
	return stalledSubscription{}, nil
}

type stalledSubscription struct{}

func (stalledSubscription) Next(ctx context.Context) (bus.Delivery, error) {
	<-ctx.Done()
	return bus.Delivery{}, ctx.Err()
}

func (stalledSubscription) Close() {}
