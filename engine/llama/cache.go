package llama

import "fmt"

// maxCacheBytes bounds the memory for keys and values.
const maxCacheBytes = 64 << 30

// cache holds the keys, rotated, and the values of all positions, in blocks. A
// position has width numbers of each, head after head.
type cache struct {
	blocks, blockTokens, width int
	keys, values               [][]float32 // by layer
}

func newCache(layers, blocks, blockTokens, width int) (cache, error) {
	perToken := layers * width * 2 * 4
	most := maxCacheBytes / perToken // tokens
	if blocks < 1 || blockTokens < 1 || blockTokens > most || blocks > most/blockTokens {
		return cache{}, fmt.Errorf("allocate %d KV blocks of %d tokens, of %d bytes each: want at least one, "+
			"and at most %d tokens", blocks, blockTokens, perToken, most)
	}
	c := cache{blocks: blocks, blockTokens: blockTokens, width: width}
	for range layers {
		c.keys = append(c.keys, make([]float32, blocks*blockTokens*width))
		c.values = append(c.values, make([]float32, blocks*blockTokens*width))
	}
	return c, nil
}

// place is where a position of a sequence begins in keys and values.
func (c *cache) place(blocks []int32, position int) int {
	return (int(blocks[position/c.blockTokens])*c.blockTokens + position%c.blockTokens) * c.width
}

func (c *cache) store(layer int, blocks []int32, position int, key, value []float32) {
	at := c.place(blocks, position)
	copy(c.keys[layer][at:at+c.width], key)
	copy(c.values[layer][at:at+c.width], value)
}

func (c *cache) copyBlock(dst, src int32) {
	size := c.blockTokens * c.width
	for layer := range c.keys {
		copy(c.keys[layer][int(dst)*size:][:size], c.keys[layer][int(src)*size:])
		copy(c.values[layer][int(dst)*size:][:size], c.values[layer][int(src)*size:])
	}
}
