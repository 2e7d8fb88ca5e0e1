package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	bolt "go.etcd.io/bbolt"
)

// databases are the metadata database and the two stores it speaks for.
type databases struct {
	root   string
	bolt   *bolt.DB
	meta   *metadata.DB
	blobs  content.Store         // without names: everything on disk
	layers snapshots.Snapshotter // likewise
	// generation is the directory of the layers in use.
	generation string
}

// openDatabases opens the databases below root. When one of them is damaged,
// both are set aside: neither can be believed without the other. rebuilt says
// that the metadata is empty though content may be there.
func openDatabases(ctx context.Context, root string, log *slog.Logger) (*databases, bool, error) {
	gen, err := lastGeneration(root)
	if err != nil {
		return nil, false, err
	}
	metaPath := filepath.Join(root, "metadata.db")
	layersDir := filepath.Join(root, fmt.Sprintf("layers-%d", gen))
	damage := errors.Join(checkBolt(metaPath), checkBolt(filepath.Join(layersDir, "metadata.db")))
	_, statErr := os.Stat(metaPath)
	missing := errors.Is(statErr, os.ErrNotExist)
	if _, err := os.Stat(layersDir); err == nil && missing {
		damage = errors.Join(damage, fmt.Errorf("%s is missing", metaPath))
	}
	if damage != nil {
		log.Error("image database damaged: set aside, images are rebuilt from stored content", "err", damage)
		if err := setAside(metaPath); err != nil {
			return nil, false, err
		}
		// Running containers may stand on the old layers: they stay where they
		// are, and go when the last of these containers is gone.
		layersDir = filepath.Join(root, fmt.Sprintf("layers-%d", gen+1))
	}
	// A new root has no blobs; a lost database has.
	_, blobsErr := os.Stat(filepath.Join(root, "content", "blobs"))
	d, err := openGeneration(ctx, root, layersDir)
	return d, blobsErr == nil && (damage != nil || missing), err
}

func openGeneration(ctx context.Context, root, layersDir string) (*databases, error) {
	d := &databases{root: root, generation: layersDir}
	// Downloads of an earlier process: their leases are dropped, and some may
	// be known to no database.
	failpoint.Hit("cri/image/drop-ingests")
	err := errors.Join(os.RemoveAll(filepath.Join(root, "content", "ingest")), os.RemoveAll(filepath.Join(root, repairDir)))
	if err != nil {
		return nil, fmt.Errorf("remove unfinished downloads: %w", err)
	}
	if d.blobs, err = local.NewStore(filepath.Join(root, "content")); err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	d.layers, err = overlay.NewSnapshotter(layersDir, overlay.AsynchronousRemove, overlay.WithUpperdirLabel)
	if err != nil {
		return nil, fmt.Errorf("open layers: %w", err)
	}
	d.bolt, err = bolt.Open(filepath.Join(root, "metadata.db"), 0o600, &bolt.Options{
		Timeout: 10 * time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open image database: %w", err), d.layers.Close())
	}
	d.meta = metadata.NewDB(d.bolt, d.blobs, map[string]snapshots.Snapshotter{snapshotterName: d.layers})
	if err := d.meta.Init(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("initialize image database: %w", err), d.close())
	}
	return d, nil
}

func (d *databases) close() error {
	return errors.Join(d.bolt.Close(), d.layers.Close())
}

// blobPath is where the content store keeps a blob.
func (d *databases) blobPath(algorithm, hex string) string {
	return filepath.Join(d.root, "content", "blobs", algorithm, hex)
}

func lastGeneration(root string) (int, error) {
	dirs, err := generations(root)
	if err != nil {
		return 0, err
	}
	last := 1
	for _, n := range dirs {
		last = max(last, n)
	}
	return last, nil
}

// generations lists the layer directories below root by their number.
func generations(root string) (map[string]int, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("list image root: %w", err)
	}
	out := map[string]int{}
	for _, e := range entries {
		text, ok := strings.CutPrefix(e.Name(), "layers-")
		if n, err := strconv.Atoi(text); ok && err == nil && n > 0 {
			out[filepath.Join(root, e.Name())] = n
		}
	}
	return out, nil
}

func setAside(path string) error {
	failpoint.Hit("cri/image/set-aside")
	err := os.Rename(path, fmt.Sprintf("%s.corrupt-%d", path, time.Now().Unix()))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set damaged image database aside: %w", err)
	}
	failpoint.Hit("cri/image/set-aside-done")
	return nil
}

// checkBolt reads every key of the database at path and reports damage; a
// missing file is none. A page that cannot be read, which would kill the
// process later, is an error here.
func checkBolt(path string) (err error) {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := checkBoltSize(path, st.Size()); err != nil {
		return err
	}
	// Faults in the mapped file become panics of this goroutine.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %v", path, p)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 10 * time.Second, ReadOnly: true})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer db.Close()
	return db.View(func(tx *bolt.Tx) error {
		sum := crc32.NewIEEE()
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return readBucket(b, sum, 0) })
	})
}

// readBucket reads everything below b into sum, which is of no use but that
// each byte was readable; a cycle of damaged pages ends at depth 32.
func readBucket(b *bolt.Bucket, sum io.Writer, depth int) error {
	if depth > 32 {
		return errors.New("buckets nest too deeply")
	}
	n := 0
	return b.ForEach(func(k, v []byte) error {
		if n++; n > 10_000_000 {
			return errors.New("a bucket has no end")
		}
		sum.Write(k)
		sum.Write(v)
		if v == nil {
			child := b.Bucket(k)
			if child == nil {
				return fmt.Errorf("bucket %q cannot be opened", k)
			}
			return readBucket(child, sum, depth+1)
		}
		return nil
	})
}

// checkBoltSize compares the file's size with what its newest readable meta
// page claims: pages beyond the end of a truncated file kill their reader.
func checkBoltSize(path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if size == 0 {
		return fmt.Errorf("%s is empty", path)
	}
	page := make([]byte, 64)
	ok := false
	for _, pageSize := range []int64{4096, 8192, 16384, 65536} {
		for _, off := range []int64{0, pageSize} {
			if _, err := f.ReadAt(page, off); err != nil {
				continue
			}
			// page header 16 bytes; meta: magic, version, pageSize, flags, root(16), freelist, pgid
			meta := page[16:]
			if binary.NativeEndian.Uint32(meta) != 0xED0CDAED || int64(binary.NativeEndian.Uint32(meta[8:])) != pageSize {
				continue
			}
			ok = true
			if pages := binary.NativeEndian.Uint64(meta[40:]); pages > uint64(size/pageSize) {
				return fmt.Errorf("%s is truncated: %d bytes for %d pages", path, size, pages)
			}
		}
	}
	if !ok {
		return fmt.Errorf("%s is no database", path)
	}
	return nil
}
