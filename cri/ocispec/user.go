package ocispec

import (
	"math"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// User is who a container's first process runs as.
type User struct {
	UID, GID uint32
	// Groups are the supplementary groups, the primary one first.
	Groups []uint32
	// Home is from the passwd file; "/" if the user is not in it.
	Home string
}

// Accounts are the contents of /etc/passwd and /etc/group of a root filesystem;
// both may be empty.
type Accounts struct{ Passwd, Group []byte }

// ResolveUser works out the user from, first found first: the security
// context's number, its name, the image's "user[:group]", root. Groups of the
// image's /etc/group are merged in unless the policy is Strict. A group in the
// security context needs a user there (CRI: "the runtime MUST error"). Errors
// wrap ErrInvalid.
func ResolveUser(sec *runtimeapi.LinuxContainerSecurityContext, imageUser string, acc Accounts) (User, error) {
	name, group := imageUser, ""
	if i := strings.IndexByte(imageUser, ':'); i >= 0 {
		name, group = imageUser[:i], imageUser[i+1:]
	}
	switch {
	case sec.GetRunAsUser() != nil:
		name, group = strconv.FormatInt(sec.GetRunAsUser().GetValue(), 10), ""
	case sec.GetRunAsUsername() != "":
		name, group = sec.GetRunAsUsername(), ""
	case sec.GetRunAsGroup() != nil:
		return User{}, invalid("the group %d is given without a user (run_as_group is for run_as_user and run_as_username)", sec.GetRunAsGroup().GetValue())
	}
	if g := sec.GetRunAsGroup(); g != nil {
		group = strconv.FormatInt(g.GetValue(), 10)
	}
	if n := sec.GetRunAsUser(); n != nil && !idInRange(n.GetValue()) {
		return User{}, invalid("user %d is out of range", n.GetValue())
	}
	if g := sec.GetRunAsGroup(); g != nil && !idInRange(g.GetValue()) {
		return User{}, invalid("group %d is out of range", g.GetValue())
	}
	u, login, err := lookupUser(name, acc)
	if err != nil {
		return User{}, err
	}
	if group != "" {
		if u.GID, err = lookupGroup(group, acc); err != nil {
			return User{}, err
		}
	}
	u.Groups = []uint32{u.GID}
	add := func(gid uint32) {
		if !slices.Contains(u.Groups, gid) {
			u.Groups = append(u.Groups, gid)
		}
	}
	if sec.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge && login != "" {
		for f := range records(acc.Group, 4) {
			if slices.Contains(strings.Split(f[3], ","), login) {
				if gid, ok := number(f[2]); ok {
					add(gid)
				}
			}
		}
	}
	for _, g := range sec.GetSupplementalGroups() {
		if !idInRange(g) {
			return User{}, invalid("supplemental group %d is out of range", g)
		}
		add(uint32(g))
	}
	return u, nil
}

// lookupUser finds name, or a number, in passwd. A number need not be there.
func lookupUser(name string, acc Accounts) (u User, login string, err error) {
	if name == "" {
		name = "0"
	}
	uid, numeric := number(name)
	if !numeric && looksNumeric(name) {
		return User{}, "", invalid("user %q is a number, and none that a user can have", name)
	}
	for f := range records(acc.Passwd, 7) {
		id, ok := number(f[2])
		if !ok || (numeric && id != uid) || (!numeric && f[0] != name) {
			continue
		}
		gid, ok := number(f[3])
		if !ok {
			return User{}, "", invalid("the entry of user %q in the image's /etc/passwd has no group: %q is no number of one", name, f[3])
		}
		home := f[5]
		if home == "" {
			home = "/"
		}
		return User{UID: id, GID: gid, Home: home}, f[0], nil
	}
	if !numeric {
		return User{}, "", invalid("user %q is not in the image's /etc/passwd", name)
	}
	home := "/"
	if uid == 0 {
		home = "/root"
	}
	return User{UID: uid, Home: home}, "", nil
}

func lookupGroup(name string, acc Accounts) (uint32, error) {
	if gid, ok := number(name); ok {
		return gid, nil
	}
	if looksNumeric(name) {
		return 0, invalid("group %q is a number, and none that a group can have", name)
	}
	for f := range records(acc.Group, 4) {
		if f[0] == name {
			if gid, ok := number(f[2]); ok {
				return gid, nil
			}
		}
	}
	return 0, invalid("group %q is not in the image's /etc/group", name)
}

// looksNumeric tells names that somebody else may read as a number: all digits,
// or digits after a sign. None of them is looked up as a name: whoever checks the
// number of an image's user before (runAsNonRoot) and finds 4294967296 or +5 must
// not get root because the image's /etc/passwd calls it so.
func looksNumeric(name string) bool {
	digits := strings.TrimLeft(name, "+-")
	return digits != "" && strings.Trim(digits, "0123456789") == ""
}

func idInRange(id int64) bool { return id >= 0 && id < math.MaxUint32 }

// number parses an ID; 2^32-1 means "no ID" to the kernel and is refused.
func number(s string) (uint32, bool) {
	v, err := strconv.ParseUint(s, 10, 32)
	return uint32(v), err == nil && v != math.MaxUint32
}

// records yields the lines of a colon-separated file that have n fields.
func records(file []byte, n int) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(string(file)) {
			if f := strings.Split(strings.TrimSpace(line), ":"); len(f) >= n && !strings.HasPrefix(line, "#") {
				if !yield(f) {
					return
				}
			}
		}
	}
}
