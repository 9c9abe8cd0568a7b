package replay

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"sonde/bus/kafkatest"
)

// Whatever carries the messages, and even when it is killed meanwhile, the dataset
// and the verdicts are the same.
func TestReplayThroughAKafkaBrokerThatIsKilledGivesTheSame(t *testing.T) {
	broker := kafkatest.Need(t, kafkatest.Options{})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	r, use := open(t, goldenDir), bundle(t)
	embedded := configOf(t.TempDir(), use)
	run(t, r, embedded, false)
	rows, _, verdicts := stored(t, embedded.Materializer.Lake)
	for range 2 {
		c := configOf(t.TempDir(), use)
		c.Bus.Kafka.Brokers, c.Bus.Stream = []string{broker.Address}, "REPLAY"
		var killing sync.WaitGroup
		killing.Go(func() {
			time.Sleep(time.Duration(rng.IntN(600)) * time.Millisecond)
			broker.Kill()
			if err := broker.Up(); err != nil {
				t.Error(err)
			}
		})
		run(t, r, c, true)
		killing.Wait()
		got, open, judged := stored(t, c.Materializer.Lake)
		if got != rows || open != 0 || !slices.Equal(judged, verdicts) {
			t.Errorf("%d rows, %d open epochs and %d verdicts; want %d, 0 and %d, as without Kafka", got, open, len(judged),
				rows, len(verdicts))
		}
		// The second lake is new, and finds everything of the first run in the topic.
	}
}
