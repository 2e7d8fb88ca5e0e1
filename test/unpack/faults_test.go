package unpack

import (
	"archive/tar"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Differences that are allowed, all of them here:
//
//   - A directory that is in no layer as an entry, and was made on the way to one,
//     gets the time of the unpacking from umoci, which is another each time; Berth
//     gives it the epoch. So does one that a whiteout of a directory above emptied
//     in part; with Berth it has what its entry says. (timeOfUnpacking)
//   - A directory that an entry of the layer needs where the same layer, or one
//     below, has a file, gets the mode and times of that file from umoci. It gets
//     an image that has the directory. (img.umoci)
//   - umoci loses extended attributes whose value is empty. (emptyValues)
//   - umoci does not know the types of tar entries 'S' (sparse, old GNU form), '7'
//     (contiguous) and 'g' (comments for all that follow), and refuses the layer.
//     It gets the same files as ordinary entries instead. (img.umoci)
//   - The link count of a directory is what the file system makes of it (the number
//     of its subdirectories on ext4, 1 on overlayfs), and is not compared.
//   - The link count of a file counts, on overlayfs, also the names in its layer
//     that a layer above deletes or replaces: the file is shared with images that
//     have these names. Which names are one file is compared always. (hiddenName)

var started = time.Now()

func timeOfUnpacking(ours, umoci object) bool {
	return ours.directory() && time.Unix(ours.mtime.Unix()).Before(started) && !time.Unix(umoci.mtime.Unix()).Before(started.Add(-time.Second))
}

var emptyValues = regexp.MustCompile(`(^| )[^ =]+=""`)

// hiddenName tells whether a layer links a name to the group of names (separated
// by NUL) that the image no longer has.
func hiddenName(i img, group string, ours, umoci object) bool {
	if ours.nlink < umoci.nlink {
		return false
	}
	have := strings.Split(group, "\x00")
	linked := slices.Clone(have)
	for grown := true; grown; {
		grown = false
		for _, l := range i.layers {
			for _, e := range l.entries {
				if e.Typeflag != tar.TypeLink {
					continue
				}
				a, b := clean(e.Name), clean(e.Linkname)
				ia, ib := slices.Contains(linked, a), slices.Contains(linked, b)
				if ia && !ib {
					linked, grown = append(linked, b), true
				} else if ib && !ia {
					linked, grown = append(linked, a), true
				}
			}
		}
	}
	return len(linked) > len(have)
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }
