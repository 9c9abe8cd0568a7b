package detector

import (
	"container/list"
	"time"
)

// lru is a bounded map that knows what was not used for the longest time.
type lru[K comparable, V any] struct {
	order list.List // of *entry[K, V], the latest used in front
	at    map[K]*list.Element
}

type entry[K comparable, V any] struct {
	key   K
	value V
	used  time.Time
}

func newLRU[K comparable, V any]() *lru[K, V] { return &lru[K, V]{at: map[K]*list.Element{}} }

func (l *lru[K, V]) len() int { return len(l.at) }

// get finds a value and marks it as used now.
func (l *lru[K, V]) get(key K, now time.Time) (V, bool) {
	element := l.at[key]
	if element == nil {
		var zero V
		return zero, false
	}
	l.order.MoveToFront(element)
	e := element.Value.(*entry[K, V])
	e.used = now
	return e.value, true
}

// put adds a key that is not there.
func (l *lru[K, V]) put(key K, value V, now time.Time) {
	l.at[key] = l.order.PushFront(&entry[K, V]{key: key, value: value, used: now})
}

// oldest is what was not used for the longest time.
func (l *lru[K, V]) oldest() (key K, value V, used time.Time, ok bool) {
	element := l.order.Back()
	if element == nil {
		return key, value, used, false
	}
	e := element.Value.(*entry[K, V])
	return e.key, e.value, e.used, true
}

// removeIf removes what gone holds for and says how much that was.
func (l *lru[K, V]) removeIf(gone func(V) bool) (n int) {
	for key, element := range l.at {
		if gone(element.Value.(*entry[K, V]).value) {
			l.remove(key)
			n++
		}
	}
	return n
}

func (l *lru[K, V]) remove(key K) {
	if element := l.at[key]; element != nil {
		l.order.Remove(element)
		delete(l.at, key)
	}
}
