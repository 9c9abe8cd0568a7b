package scheduler

import "sonde/ring2"

// maxPast bounds the ended requests, and the ended sequences, that an abort is
// still told about; of older ones the answer is that they are unknown.
const maxPast = 1 << 13

// past remembers what has ended.
type past struct {
	sequences map[uint64]endedSequence
	numbers   []uint64 // ring of the keys of sequences
	requests  map[string]int
	ids       []string // ring of the keys of requests
	nextID    int
	nextNum   int
}

type endedSequence struct {
	engineID string
	sample   uint32
	length   int
}

func newPast() past { return past{sequences: map[uint64]endedSequence{}, requests: map[string]int{}} }

func (p *past) addSequence(number uint64, e endedSequence) {
	if len(p.numbers) < maxPast {
		p.numbers = append(p.numbers, number)
	} else {
		delete(p.sequences, p.numbers[p.nextNum])
		p.numbers[p.nextNum] = number
		p.nextNum = (p.nextNum + 1) % maxPast
	}
	p.sequences[number] = e
}

func (p *past) addRequest(id string, length int) {
	if _, again := p.requests[id]; !again {
		if len(p.ids) < maxPast {
			p.ids = append(p.ids, id)
		} else {
			delete(p.requests, p.ids[p.nextID])
			p.ids[p.nextID] = id
			p.nextID = (p.nextID + 1) % maxPast
		}
	}
	p.requests[id] = length
}

func (p *past) request(id string) aborted {
	if length, ok := p.requests[id]; ok {
		return aborted{ring2.AbortFinished, length}
	}
	return aborted{}
}

func (p *past) sequence(a *ring2.Abort) aborted {
	e, ok := p.sequences[a.Number]
	if !ok || e.engineID != a.EngineID || e.sample != a.Sample {
		return aborted{}
	}
	return aborted{ring2.AbortFinished, e.length}
}
