// Package patience knows how slow the machine under the tests is.
package patience

import (
	"os"
	"strconv"
	"time"
)

// For is how long to wait on this machine for what takes at most d on others: an
// emulated one says in $BERTH_PATIENCE how many times slower it is.
func For(d time.Duration) time.Duration {
	if factor, err := strconv.Atoi(os.Getenv("BERTH_PATIENCE")); err == nil && factor > 0 {
		return d * time.Duration(factor)
	}
	return d
}
