package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Import stores the images of an archive: an OCI layout or what docker save
// writes, plain, gzip or zstd. Each image gets the names the archive gives it;
// one without a name is known by its ID. Images for other platforms are left
// out. progress, if not nil, is called from this goroutine about four times a
// second. Imports run one at a time. Import returns only after its last Read of
// r, so ending ctx must end r's Reads. The error is an *Error.
func (s *Store) Import(ctx context.Context, r io.Reader, progress func(Progress)) ([]Image, error) {
	ctx, stop := context.WithCancelCause(namespaces.WithNamespace(ctx, namespace))
	defer stop(nil)
	defer context.AfterFunc(s.ctx, func() { stop(context.Canceled) })()
	t := newTracker("")
	t.set(PhaseReading)
	done := make(chan struct{})
	var list []Image
	var err error
	go func() {
		defer close(done)
		list, err = s.importArchive(ctx, &trackedReader{ctx: ctx, r: r, tracker: t}, t)
	}()
	report(done, ctx, t, progress)
	<-done
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return list, failed("import images", "", err)
}

// ImportLayoutDir stores the images of an OCI layout in a directory, as Import does.
func (s *Store) ImportLayoutDir(ctx context.Context, dir string, progress func(Progress)) ([]Image, error) {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(tarDir(ctx, dir, pw))
	}()
	list, err := s.Import(ctx, pr, progress)
	pr.CloseWithError(io.ErrClosedPipe)
	<-done
	return list, err
}

// trackedReader counts an archive's bytes and ends with ctx.
type trackedReader struct {
	ctx     context.Context
	r       io.Reader
	tracker *tracker
}

func (t *trackedReader) Read(p []byte) (int, error) {
	if t.ctx.Err() != nil {
		return 0, context.Cause(t.ctx)
	}
	n, err := t.r.Read(p)
	t.tracker.read("", n, 0)
	return n, err
}

func (s *Store) importArchive(ctx context.Context, r io.Reader, t *tracker) ([]Image, error) {
	if err := s.imports.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	defer s.imports.Release(1)
	var list []Image
	err := s.leased(ctx, func(ctx context.Context) error {
		desc, err := s.readArchive(ctx, r)
		if err != nil {
			return err
		}
		found, err := s.archiveImages(ctx, desc)
		if err != nil {
			return err
		}
		t.set(PhaseUnpacking)
		list, err = s.storeFound(ctx, found, t)
		return err
	})
	return list, err
}

// readArchive stores the archive's content and returns its index.
func (s *Store) readArchive(ctx context.Context, r io.Reader) (ocispec.Descriptor, error) {
	// Of an import that failed; they would be continued with other bytes.
	if err := s.abortIngests(ctx); err != nil {
		return ocispec.Descriptor{}, err
	}
	pr, pw := io.Pipe()
	filtered := make(chan error, 1)
	go func() {
		err := filterArchive(r, pw, s.cfg.MaxImageSize)
		pw.CloseWithError(err)
		filtered <- err
	}()
	failpoint.Hit("cri/image/import-read")
	desc, err := archive.ImportIndex(ctx, s.content, pr)
	failpoint.Hit("cri/image/import-read-done")
	if err == nil {
		// The importer stops at the end marker; the filter has its own.
		_, err = io.Copy(io.Discard, pr)
	}
	pr.CloseWithError(io.ErrClosedPipe)
	if ferr := <-filtered; ferr != nil && !errors.Is(ferr, io.ErrClosedPipe) {
		return desc, ferr
	}
	if err != nil {
		if aerr := s.abortIngests(context.WithoutCancel(ctx)); aerr != nil {
			s.log.Warn("cannot remove what an import left", "err", aerr)
		}
		if code := codeFor(err); code == CodeDiskFull {
			return desc, codef(code, "store archive: %w", err)
		}
		return desc, codef(CodeBadArchive, "archive: %w", err)
	}
	return desc, checkSize(desc, maxManifest)
}

func (s *Store) abortIngests(ctx context.Context) error {
	list, err := s.content.ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("list unfinished content: %w", err)
	}
	for _, st := range list {
		if !strings.HasPrefix(st.Ref, "tar-") {
			continue
		}
		if err := s.content.Abort(ctx, st.Ref); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove unfinished content %s: %w", st.Ref, err)
		}
	}
	return nil
}

// foundImage is one image of an archive.
type foundImage struct {
	target ocispec.Descriptor
	parsed *parsed
	names  []string
}

// archiveImages lists the images of an archive's index that run on this machine.
func (s *Store) archiveImages(ctx context.Context, desc ocispec.Descriptor) ([]*foundImage, error) {
	b, err := content.ReadBlob(ctx, s.content, desc)
	if err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	var ix ocispec.Index
	if err := json.Unmarshal(b, &ix); err != nil {
		return nil, codef(CodeBadArchive, "index.json: %w", err)
	}
	if len(ix.Manifests) == 0 {
		return nil, codef(CodeBadArchive, "archive holds no image")
	}
	var found []*foundImage
	var skipped []error
	for _, m := range ix.Manifests {
		f, err := s.archiveImage(ctx, m)
		if err != nil {
			skipped = append(skipped, err)
			continue
		}
		i := slices.IndexFunc(found, func(o *foundImage) bool { return o.target.Digest == f.target.Digest })
		if i < 0 {
			found = append(found, f)
		} else {
			found[i].names = append(found[i].names, f.names...)
		}
	}
	if len(found) == 0 {
		return nil, skipped[0]
	}
	for _, err := range skipped {
		if codeFor(err) != CodePlatform {
			return nil, err
		}
	}
	return found, nil
}

func (s *Store) archiveImage(ctx context.Context, m ocispec.Descriptor) (*foundImage, error) {
	p, err := s.adopt(ctx, m)
	if err != nil {
		if errdefs.IsNotFound(err) && codeFor(err) != CodePlatform {
			return nil, codef(CodeBadArchive, "archive lacks content: %w", err)
		}
		return nil, err
	}
	f := &foundImage{target: m, parsed: p}
	name := m.Annotations[images.AnnotationImageName]
	if ref := m.Annotations[ocispec.AnnotationRefName]; name == "" && strings.ContainsAny(ref, "/:") {
		// A ref name without either is a tag of nothing.
		name = ref
	}
	if name == "" {
		return f, nil
	}
	named, err := parseRef(name)
	if err != nil {
		return nil, codef(CodeBadArchive, "archive names an image %q: %w", name, err)
	}
	if _, ok := named.(reference.Digested); !ok {
		f.names = []string{named.String()}
	}
	return f, nil
}

// storeFound unpacks and names the images of an archive.
func (s *Store) storeFound(ctx context.Context, found []*foundImage, t *tracker) ([]Image, error) {
	var list []Image
	for _, f := range found {
		if err := s.unpackImage(ctx, f.parsed, t, nil); err != nil {
			return list, err
		}
		if len(f.names) == 0 {
			f.names = []string{string(f.parsed.id)}
		}
		img, err := s.nameImage(ctx, f.parsed, f.target, f.names)
		if err != nil {
			return list, err
		}
		list = append(list, img)
	}
	t.set(PhaseDone)
	return list, nil
}
