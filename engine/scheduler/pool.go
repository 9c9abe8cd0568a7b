package scheduler

import (
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// blockHash names the content of a full block and of all blocks before it, for
// one adapter.
type blockHash [sha256.Size]byte

func rootHash(adapter string) blockHash { return sha256.Sum256([]byte("adapter " + adapter)) }

// next is the hash of the block that follows one with hash h.
func (h blockHash) next(tokens []int32) blockHash {
	buf := make([]byte, 0, len(h)+4*len(tokens))
	buf = append(buf, h[:]...)
	for _, id := range tokens {
		buf = binary.LittleEndian.AppendUint32(buf, uint32(id))
	}
	return sha256.Sum256(buf)
}

// pool counts the references to KV blocks. A full block whose content is known
// stays after its last reference, for prompts that start alike, until its room
// is needed; the least recently used goes first.
type pool struct {
	blocks []block
	free   []int32
	idle   *list.List // of int32: cached blocks without references, oldest first
	cached map[blockHash]int32
}

type block struct {
	refs   int
	hash   blockHash
	cached bool
	idle   *list.Element // while it stands in pool.idle
}

func newPool(blocks int) *pool {
	p := &pool{blocks: make([]block, blocks), idle: list.New(), cached: map[blockHash]int32{}}
	for b := blocks - 1; b >= 0; b-- {
		p.free = append(p.free, int32(b))
	}
	return p
}

// available is the number of blocks that take can give out.
func (p *pool) available() int { return len(p.free) + p.idle.Len() }

// take gives out a block with one reference; ok is false when all are in use.
func (p *pool) take() (b int32, ok bool) {
	if n := len(p.free); n > 0 {
		b, p.free = p.free[n-1], p.free[:n-1]
	} else if oldest := p.idle.Front(); oldest != nil {
		b = p.idle.Remove(oldest).(int32)
		delete(p.cached, p.blocks[b].hash)
	} else {
		return 0, false
	}
	p.blocks[b] = block{refs: 1}
	return b, true
}

func (p *pool) retain(b int32) {
	k := &p.blocks[b]
	if k.idle != nil {
		p.idle.Remove(k.idle)
		k.idle = nil
	}
	k.refs++
}

func (p *pool) release(b int32) {
	k := &p.blocks[b]
	k.refs--
	switch {
	case k.refs < 0:
		panic(fmt.Sprintf("BUG: KV block %d was released more often than taken", b))
	case k.refs > 0:
	case k.cached:
		k.idle = p.idle.PushBack(b)
	default:
		p.free = append(p.free, b)
	}
}

// shared says whether others read the block, so that nobody may write it.
func (p *pool) shared(b int32) bool { return p.blocks[b].refs > 1 }

// remember makes the content of a full block known. Where another block holds
// the same already, that one stays the known one.
func (p *pool) remember(b int32, h blockHash) {
	if _, known := p.cached[h]; known || p.blocks[b].cached {
		return
	}
	p.blocks[b].hash, p.blocks[b].cached = h, true
	p.cached[h] = b
}

// lookup finds the blocks that hold the first hashes, without taking them. idle
// is how many of them count as available.
func (p *pool) lookup(hashes []blockHash) (found []int32, idle int) {
	for _, h := range hashes {
		b, ok := p.cached[h]
		if !ok {
			break
		}
		found = append(found, b)
		if p.blocks[b].refs == 0 {
			idle++
		}
	}
	return found, idle
}
