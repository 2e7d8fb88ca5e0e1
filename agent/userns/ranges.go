package userns

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/test/failpoint"
)

const (
	// unit is the smallest range, and what all ranges are multiples of.
	unit = 1 << 16
	// space is the number of units in 32 bits of IDs.
	space = 1 << 16

	subIDTime = 10 * time.Second
	subIDUser = "kubelet" // whose subordinate IDs are pods', as upstream has it
)

// span is the part of the host's IDs that ranges are taken from, in units.
type span struct{ first, count uint32 }

// spanOf asks for the subordinate IDs of the user kubelet. Without that user or
// the program, everything above the host's own first range is free.
func spanOf(ctx context.Context, cfg Config) (span, error) {
	each := cfg.IDsPerPod / unit
	free := span{first: each, count: space - each}
	if _, err := user.Lookup(subIDUser); err != nil {
		return free, nil
	}
	program, err := exec.LookPath(cfg.SubIDs)
	if err != nil {
		return free, nil
	}
	uids, err := ask(ctx, program, subIDUser)
	if err != nil {
		return span{}, err
	}
	gids, err := ask(ctx, program, "-g", subIDUser)
	if err != nil {
		return span{}, err
	}
	if uids != gids {
		return span{}, fmt.Errorf("the subordinate user IDs (%q) and group IDs (%q) of the user %s differ: give it the same range in /etc/subuid and /etc/subgid", uids, gids, subIDUser)
	}
	return parseSubIDs(uids, cfg.IDsPerPod)
}

// ask runs getsubids, which prints "0: kubelet FIRST COUNT".
func ask(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, subIDTime)
	defer cancel()
	failpoint.Hit("agent/userns/getsubids")
	out, err := exec.CommandContext(ctx, program, args...).Output()
	if err != nil {
		return "", fmt.Errorf("ask for the subordinate IDs of pods: %s %s: %w; add the user %s to /etc/subuid and /etc/subgid, or remove the user", program, strings.Join(args, " "), err, subIDUser)
	}
	return strings.TrimSpace(string(out)), nil
}

func parseSubIDs(text string, each uint32) (span, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 1 {
		return span{}, fmt.Errorf("the user %s has %d ranges of subordinate IDs; pods can use one only: leave one in /etc/subuid and /etc/subgid", subIDUser, len(lines))
	}
	fields := strings.Fields(lines[0])
	if len(fields) != 4 {
		return span{}, fmt.Errorf("the answer of getsubids is not of the form \"0: %s FIRST COUNT\": %q", subIDUser, text)
	}
	first, err1 := strconv.ParseUint(fields[2], 10, 32)
	count, err2 := strconv.ParseUint(fields[3], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return span{}, fmt.Errorf("the answer of getsubids holds no numbers: %q: %w", text, err)
	}
	switch {
	case first < uint64(each):
		return span{}, fmt.Errorf("the subordinate IDs of the user %s begin at %d, among the host's own: let them begin at %d or above", subIDUser, first, each)
	case first%unit != 0 || count%unit != 0:
		return span{}, fmt.Errorf("the first of the subordinate IDs of the user %s (%d) and their number (%d) must be multiples of %d", subIDUser, first, count, unit)
	case first+count > 1<<32:
		return span{}, fmt.Errorf("the subordinate IDs of the user %s end above %d", subIDUser, uint64(1)<<32)
	}
	return span{first: uint32(first / unit), count: uint32(count / unit)}, nil
}
