package report

import (
	"sync"
	"time"
)

// forget is how long an entry outlives its last use.
const forget = 5 * time.Minute

// cache remembers values by key. Callers of one key that come together wait for
// one reading; those of others do not wait for each other. The zero value is
// ready for use.
type cache[T any] struct {
	mu      sync.Mutex
	entries map[string]*entry[T]
	swept   time.Time
}

type entry[T any] struct {
	used time.Time // under the cache's mu

	mu    sync.Mutex
	at    time.Time
	value T
	known bool
}

// get returns what is known of key if it is younger than maxAge, and else what
// read makes of the last value, which is then known. After a failure nothing is.
func (c *cache[T]) get(key string, maxAge time.Duration, read func(last T) (T, error)) (T, error) {
	e := c.entry(key, time.Now())
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known && time.Since(e.at) < maxAge {
		return e.value, nil
	}
	v, err := read(e.value)
	if err != nil {
		var none T
		e.value, e.known = none, false
		return none, err
	}
	e.value, e.known, e.at = v, true, time.Now()
	return v, nil
}

func (c *cache[T]) entry(key string, now time.Time) *entry[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.swept) > forget {
		for k, e := range c.entries {
			if now.Sub(e.used) > forget {
				delete(c.entries, k)
			}
		}
		c.swept = now
	}
	e := c.entries[key]
	if e == nil {
		if c.entries == nil {
			c.entries = map[string]*entry[T]{}
		}
		e = &entry[T]{}
		c.entries[key] = e
	}
	e.used = now
	return e
}
