package unpack

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"time"
)

// capability is a value of security.capability: cap_net_bind_service+ep.
const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// features are images that have one thing each.
func features() []img {
	base := of(dir("a", 0o711, owner(5, 6)), file("a/x", "x"), file("a/y", "y"), dir("a/b", 0o1777), file("a/b/z", "z"),
		dir("usr", 0o755), dir("usr/lib", 0o755, attr("user.k", "v")), file("usr/lib/l", "l"), link("lib", "usr/lib"), link("abs", "/usr/lib"), link("up", "../../../usr"))
	all := []img{
		{name: "empty layer", layers: []layer{base, of(), of(file("f", ""))}},
		{name: "only an empty layer", layers: []layer{of()}},
		{name: "uncompressed", layers: []layer{{entries: base.entries, media: plain}, {entries: []entry{gone("a/x")}, media: plain}}},
		{name: "zstd", layers: []layer{{entries: base.entries, media: zstdd}, of(gone("a/x"))}},
		{name: "whiteout file", layers: []layer{base, of(gone("a/x"))}},
		{name: "whiteout directory", layers: []layer{base, of(gone("a"))}},
		{name: "whiteout then again", layers: []layer{base, of(gone("a"), dir("a", 0o700), file("a/n", "n"))}},
		{name: "again then whiteout", layers: []layer{base, of(dir("a", 0o700), file("a/n", "n"), gone("a"))}},
		{name: "whiteout of what is between", layers: []layer{base, of(file("a/b/n", "n"), gone("a"))}},
		{name: "whiteout then between", layers: []layer{base, of(gone("a"), file("a/b/n", "n"))}},
		{name: "whiteout of nothing", layers: []layer{base, of(gone("no"), gone("no/such/file"), gone("a/no"), dir("new", 0o755), gone("new/x"))}},
		{name: "whiteout in bottom layer", layers: []layer{of(gone("a"), file("a", "a"), gone("b/c"), dir("d", 0o755), opaque("d"), file("d/e", "e")), base}},
		{name: "whiteout through a file", layers: []layer{base, of(gone("a/x/y"), gone("lib/l"))}},
		{name: "whiteouts in three layers", layers: []layer{base, of(gone("a/x")), of(file("a/x", "new")), of(gone("a/x"), gone("usr")), of(dir("usr", 0o700))}},
		{name: "opaque", layers: []layer{base, of(opaque("a"), file("a/n", "n"))}},
		{name: "opaque after content", layers: []layer{base, of(dir("a", 0o700), file("a/n", "n"), file("a/b/m", "m"), opaque("a"))}},
		{name: "opaque between", layers: []layer{base, of(file("a/b/m", "m"), opaque("a"))}},
		{name: "opaque of nothing", layers: []layer{base, of(opaque("no"), opaque("a/no"), opaque("new/no"))}},
		{name: "opaque root", layers: []layer{base, of(file("n", "n"), opaque("."))}},
		{name: "opaque with whiteouts", layers: []layer{base, of(gone("a/x"), gone("a/b/z"), opaque("a"), gone("a/y"), file("a/k", "k"))}},
		{name: "opaque through a link", layers: []layer{base, of(opaque("lib"), file("usr/lib/n", "n"))}},
		{name: "opaque twice", layers: []layer{base, of(opaque("a")), of(file("a/b/q", "q")), of(opaque("a/b"), opaque("a"))}},
		{name: "hard links", layers: []layer{of(file("x", "x", mode(0o4755)), hard("y", "x"), dir("d", 0o755), hard("d/z", "y"), link("s", "x"), hard("t", "s"), node("fifo", tar.TypeFifo, 0, 0), hard("fifo2", "/fifo"))}},
		{name: "hard link to a layer below", layers: []layer{base, of(hard("n", "a/x"), hard("a/m", "./a/b/../y"))}},
		{name: "hard link to one of several below", layers: []layer{of(file("x", "x", owner(7, 8)), hard("y", "x"), dir("d", 0o755), hard("d/z", "x")), of(hard("n", "d/z"))}},
		{name: "hard link through a link below", layers: []layer{base, of(hard("n", "lib/l"), hard("lib/m", "abs/l"))}},
		{name: "hard link below is replaced", layers: []layer{of(file("x", "x"), hard("y", "x"), hard("z", "x")), of(file("x", "new")), of(gone("y"))}},
		{name: "hard link over something", layers: []layer{base, of(file("k", "k"), hard("a/x", "k"), hard("lib", "k"))}},
		{name: "links to links", layers: []layer{of(link("one", "two"), link("two", "three/../four"), dir("four", 0o755), file("one/f", "f"), link("loop", "loop"))}},
		{name: "write through a link below", layers: []layer{base, of(file("lib/n", "n"), file("abs/m", "m"), file("up/lib/o", "o"))}},
		{name: "write through a link of the layer", layers: []layer{base, of(link("q", "a"), file("q/n", "n"), link("q2", "/a/b"), dir("q2/d", 0o700), file("q2/d/n", "n"))}},
		{name: "directory replaces link", layers: []layer{base, of(dir("lib", 0o700), file("lib/n", "n"))}},
		{name: "link replaces directory", layers: []layer{base, of(link("a", "usr"), file("a/n", "n"))}},
		{name: "file replaces directory", layers: []layer{base, of(file("a", "a"))}},
		{name: "directory replaces file", layers: []layer{base, of(dir("a/x", 0o700), file("a/x/n", "n")), of(file("a/x/m", "m"))}},
		{name: "file, directory, file", layers: []layer{base, of(file("a", "1"), dir("a", 0o700), file("a/n", "n"))}},
		{name: "directory through a file", layers: []layer{base, of(file("a/x/n", "n"), file("k", "k"), file("k/n", "n"))},
			umoci: []layer{base, of(dir("a/x", 0o755, when(time.Unix(0, 0))), file("a/x/n", "n"), dir("k", 0o755, when(time.Unix(0, 0))), file("k/n", "n"))}},
		{name: "entries twice", layers: []layer{base, of(file("f", "1"), file("f", "22"), dir("d", 0o755, attr("user.a", "1")), file("d/f", "f"), dir("d", 0o700, attr("user.b", "2")), link("s", "f"), link("s", "d"))}},
		{name: "no parents", layers: []layer{of(file("p/q/r/s", "s")), of(file("p/q/t", "t"), file("u/v/w", "w"), dir("p/q", 0o750)), of(file("p/q/r/x", "x"))}},
		{name: "parents are of below", layers: []layer{base, of(file("a/b/c/d/n", "n")), of(file("a/b/c/d/m", "m"), file("usr/lib/deep/n", "n"))}},
		{name: "root entry", layers: []layer{of(dir(".", 0o1751, owner(3, 4), attr("user.root", "r"), when(noon.Add(-5*time.Hour))), file("f", "f")), of(file("g", "g"))}},
		{name: "root entry above", layers: []layer{of(file("f", "f")), of(file("g", "g"), dir("./", 0o700, owner(1, 1), attr("user.top", "t"))), of(gone("f"))}},
		{name: "names with dots and slashes", layers: []layer{of(file("./a//b/./c", "c"), file("/abs/f", "f"), file("d/../e", "e"), file("../../out", "o"), dir("./x/./", 0o755))}},
	}
	return append(append(all, attributes()...), extremes()...)
}

// attributes are images about what files have besides content.
func attributes() []img {
	return []img{
		{name: "special bits", layers: []layer{of(file("su", "x", mode(0o4755)), file("sg", "x", mode(0o2755), owner(0, 42)), dir("t", 0o1777), dir("sgd", 0o2775, owner(9, 9)), file("sgd/f", "f"), file("none", "", mode(0)), file("all", "", mode(0o7777), owner(65534, 65534)))}},
		{name: "xattrs", layers: []layer{of(file("cap", "x", mode(0o755), attr("security.capability", capability)), file("u", "u", attr("user.one", "1"), attr("user.two", "\x00\xff")),
			dir("d", 0o755, attr("user.d", strings.Repeat("v", 1000)), attr("trusted.t", "t")), file("acl", "x", attr("system.posix_acl_access", "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x05\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff")))}},
		{name: "xattrs of below", layers: []layer{of(dir("d", 0o755, attr("user.low", "1"), attr("trusted.low", "1")), file("d/f", "f", attr("user.f", "f")), dir("e", 0o755, attr("user.e", "e"))),
			of(dir("d", 0o700, attr("user.high", "2")), file("d/g", "g"), file("e/n", "n")), of(file("d/f", "again"))}},
		{name: "xattrs of overlayfs", layers: []layer{of(dir("d", 0o755), file("d/f", "f")), of(dir("d", 0o755, attr("trusted.overlay.opaque", "y")), file("d/g", "g"), dir("r", 0o755, attr("trusted.overlay.redirect", "/d")),
			file("m", "m", attr("trusted.overlay.metacopy", "")), file("u", "u", attr("user.overlay.opaque", "y"))), of(file("d/h", "h"))}},
		{name: "xattrs of the host", layers: []layer{of(file("s", "s", attr("security.selinux", "system_u:object_r:bin_t:s0")))}},
		{name: "devices", layers: []layer{of(node("null", tar.TypeChar, 1, 3), node("sda", tar.TypeBlock, 8, 0), node("big", tar.TypeChar, 300, 70000), node("fifo", tar.TypeFifo, 0, 0), dir("dev", 0o755)), of(node("dev/null", tar.TypeChar, 1, 3), node("null", tar.TypeBlock, 1, 3))}},
		{name: "owners", layers: []layer{of(file("big", "x", owner(4_000_000_000, 3_999_999_999)), file("m", "m", owner(2_097_151, 2_097_152)), dir("d", 0o700, owner(70000, 80000)), made(tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "x", Mode: 0o777, Uid: 77, Gid: 78}, "", nil))}},
		{name: "times", layers: []layer{of(file("zero", "", when(time.Unix(0, 0))), file("nano", "", when(time.Unix(1_500_000_000, 123_456_789))), file("before", "", when(time.Unix(-1000, 0))),
			file("far", "", when(time.Unix(7_000_000_000, 0))), dir("d", 0o755, when(time.Unix(1000, 5))), file("d/f", "f"), link("s", "zero"), dir("d/e", 0o755, when(time.Unix(2000, 7))), file("d/e/g", "g")), of(file("d/e/h", "h"), gone("d/f"))}},
		{name: "comments for all", layers: []layer{of(entry{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}}, file("f", "f"))}, umoci: []layer{of(file("f", "f"))}},
	}
}

// extremes are images with much, long, odd or many of something.
func extremes() []img {
	long := strings.Repeat("n", 255)
	deep := strings.Repeat("d/", 60) + "f"
	ustar := func(h *tar.Header) { h.Format = tar.FormatUSTAR }
	gnu := func(h *tar.Header) { h.Format = tar.FormatGNU }
	sparse := strings.Repeat("\x00", 1<<20) + "data" + strings.Repeat("\x00", 3<<20)
	contiguous := file("c", "c")
	contiguous.Typeflag = tar.TypeCont
	return []img{
		{name: "long names", layers: []layer{of(file(long, "l"), file(deep, "f"), file("p/"+long+"/"+long, "q"), link("s", strings.Repeat("t/", 500)), file(strings.Repeat("g", 200), "g", gnu), file(strings.Repeat("u/", 70)+"u", "u", ustar), hard("h", long))}},
		{name: "odd names", layers: []layer{of(file("not\xffutf8\xfe", "x"), file("ümlaut 文字", "x"), file(" space ", "x"), file("new\nline", "x"), file("-rf", "x"), file("..x", "x"), file(".wh", "x"), file("a:b,c\\d", "x"), dir("\xf0dir", 0o711, owner(3, 3))), of(file("\xf0dir/n", "n"), gone("not\xffutf8\xfe"))}},
		{name: "sparse GNU", layers: []layer{of(entry{raw: sparseEntry("big", sparse)}, file("after", "a"))}, umoci: []layer{of(file("big", sparse, mode(0o644), when(noon)), file("after", "a"))}},
		{name: "sparse PAX", layers: []layer{of(entry{raw: paxSparseEntry("big", sparse)}, file("after", "a"))}},
		{name: "contiguous", layers: []layer{of(contiguous)}, umoci: []layer{of(file("c", "c"))}},
		{name: "zeros", layers: []layer{of(file("z", strings.Repeat("\x00", 1<<20)), file("y", strings.Repeat("\x00", 5000)+"x"))}},
		{name: "hundred layers", layers: many(100, func(i int) layer {
			return of(dir("d", 0o755, when(noon.Add(time.Duration(i)*time.Second))), file(fmt.Sprintf("d/f%d", i), fmt.Sprint(i)), file("same", fmt.Sprint(i)), gone(fmt.Sprintf("d/f%d", i-3)))
		})},
		{name: "many files", layers: []layer{of(numbered(3000, func(i int) entry { return file(fmt.Sprintf("d%d/f%d", i%50, i), fmt.Sprint(i)) })...), of(numbered(1500, func(i int) entry { return gone(fmt.Sprintf("d%d/f%d", i%50, i)) })...)}},
		{name: "same layer twice", layers: []layer{of(file("f", "f")), of(gone("f")), of(file("f", "f"))}},
		{name: "refused: unknown type", layers: []layer{of(made(tar.Header{Name: "x", Typeflag: 'Z'}, "", nil))}, refused: true},
		{name: "refused: link to nothing", layers: []layer{of(hard("x", "no"))}, refused: true},
		{name: "refused: link to nothing below", layers: []layer{of(file("f", "f")), of(hard("x", "no"))}, refused: true},
		{name: "refused: root is no directory", layers: []layer{of(link("./", "/etc"))}, refused: true},
		{name: "refused: link to what was deleted", layers: []layer{of(file("f", "f")), of(gone("f"), hard("x", "f"))}, refused: true},
	}
}

// sparseEntry is an entry in the old GNU form: one megabyte of hole, four bytes, a hole.
func sparseEntry(name, body string) []byte {
	b := make([]byte, 1024)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], "00000000004\x00")
	copy(b[136:], fmt.Sprintf("%011o\x00", noon.Unix()))
	copy(b[148:], "        ")
	b[156] = 'S'
	copy(b[257:], "ustar  \x00")
	at := strings.Index(body, "data")
	copy(b[386:], fmt.Sprintf("%011o\x00%011o\x00", at, 4))
	copy(b[410:], fmt.Sprintf("%011o\x00%011o\x00", len(body), 0))
	copy(b[483:], fmt.Sprintf("%011o\x00", len(body)))
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	copy(b[512:], "data")
	return b
}

// paxSparseEntry is one in the PAX form 1.0: the map stands before the content.
func paxSparseEntry(name, body string) []byte {
	at := strings.Index(body, "data")
	m := fmt.Sprintf("2\n%d\n4\n%d\n0\n", at, len(body))
	content := make([]byte, 512+4)
	copy(content, m)
	copy(content[512:], "data")
	record := func(k, v string) string {
		for n := len(k) + len(v) + 3; ; n++ {
			if r := fmt.Sprintf("%d %s=%s\n", n, k, v); len(r) == n {
				return r
			}
		}
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", name) + record("GNU.sparse.realsize", fmt.Sprint(len(body)))
	var b bytes.Buffer
	put := func(name string, kind byte, body []byte) {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x00", len(body)))
		copy(h[136:], fmt.Sprintf("%011o\x00", noon.Unix()))
		copy(h[148:], "        ")
		h[156] = kind
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		b.Write(h)
		b.Write(body)
		b.Write(make([]byte, (512-len(body)%512)%512))
	}
	put("PaxHeaders/"+name, 'x', []byte(pax))
	put("GNUSparseFile.0/"+name, '0', content)
	return b.Bytes()
}
