package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync"

	"github.com/berthd/berth/agent/pod"
)

// hasImages answers that there are none to ask about, if so.
func (s *Server) hasImages(w http.ResponseWriter) bool {
	if s.config.Images == nil {
		s.fail(w, refuse(http.StatusNotImplemented, "this agent cannot look after the images of its container runtime; use that runtime's own command"))
	}
	return s.config.Images != nil
}

func (s *Server) listImages(w http.ResponseWriter, r *http.Request) {
	if !s.hasImages(w) {
		return
	}
	all, err := s.config.Images.List(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	files := []ImportedFile{}
	if s.config.ImportFolder != nil {
		files = append(files, s.config.ImportFolder()...)
	}
	s.answer(w, http.StatusOK, map[string]any{"images": s.counted(all), "importFolder": files})
}

// counted fills in how many containers are made from each image, and makes
// empty lists of absent ones.
func (s *Server) counted(all []Image) []Image {
	out := slices.Clone(all)
	pods := s.config.Pods.List()
	for i := range out {
		out[i].Tags, out[i].Digests, out[i].InUse = append([]string{}, out[i].Tags...), append([]string{}, out[i].Digests...), 0
		for _, p := range pods {
			for _, c := range p.Observed.Containers {
				if c.ImageID == out[i].ID || c.ImageRef == out[i].ID || slices.Contains(out[i].Digests, c.ImageRef) {
					out[i].InUse++
				}
			}
		}
	}
	return append([]Image{}, out...)
}

// imageName is the image that r names, or answers that it names none.
func (s *Server) imageName(w http.ResponseWriter, r *http.Request) (string, bool) {
	ref := r.URL.Query().Get("image")
	if ref == "" {
		s.fail(w, refuse(http.StatusBadRequest, "name an image: ?image=REF"))
	}
	return ref, ref != ""
}

func (s *Server) removeImage(w http.ResponseWriter, r *http.Request) {
	if !s.hasImages(w) {
		return
	}
	ref, ok := s.imageName(w, r)
	if !ok {
		return
	}
	if err := s.config.Images.Remove(r.Context(), ref); err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, http.StatusOK, struct{}{})
}

func (s *Server) pullImage(w http.ResponseWriter, r *http.Request) {
	if !s.hasImages(w) {
		return
	}
	ref, ok := s.imageName(w, r)
	if !ok {
		return
	}
	sent, err := body(w, r, maxAuthBody)
	if err != nil {
		s.fail(w, err)
		return
	}
	var auth *Auth
	if len(sent) > 0 {
		auth = &Auth{}
		if json.Unmarshal(sent, auth) != nil { // its error would quote the credentials
			s.fail(w, refuse(http.StatusBadRequest, `the body is not of the form {"username":"...","password":"..."}`))
			return
		}
	}
	s.progress(w, r, func(ctx context.Context, report func(Progress)) (any, error) {
		image, err := s.config.Images.Pull(ctx, ref, auth, report)
		return map[string]Image{"image": image}, err
	})
}

func (s *Server) importImages(w http.ResponseWriter, r *http.Request) {
	if !s.hasImages(w) {
		return
	}
	// Progress is sent while the archive still comes.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		s.fail(w, err)
		return
	}
	s.progress(w, r, func(ctx context.Context, report func(Progress)) (any, error) {
		images, err := s.config.Images.Import(ctx, r.Body, report)
		return map[string][]Image{"images": append([]Image{}, images...)}, err
	})
}

func (s *Server) verifyImages(w http.ResponseWriter, r *http.Request) {
	if !s.hasImages(w) {
		return
	}
	repair := r.URL.Query().Get("repair") == "true"
	s.progress(w, r, func(ctx context.Context, report func(Progress)) (any, error) {
		damaged, err := s.config.Images.Verify(ctx, repair, report)
		return map[string][]Damaged{"damaged": append([]Damaged{}, damaged...)}, err
	})
}

// latest holds the newest progress that has not been sent: a client that reads
// slowly holds nothing up.
type latest struct {
	mu   sync.Mutex
	news *Progress
	wake chan struct{}
}

func (l *latest) put(p Progress) {
	l.mu.Lock()
	l.news = &p
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *latest) take() *Progress {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.news
	l.news = nil
	return p
}

// progress does work and reports on it line by line; the last line is what the
// work gave, or its error. The work ends when the client leaves.
func (s *Server) progress(w http.ResponseWriter, r *http.Request, work func(context.Context, func(Progress)) (any, error)) {
	ctx, end := stream(r)
	defer end()
	out := newLines(w)
	if out.begin() != nil {
		return // the client has left
	}
	news := latest{wake: make(chan struct{}, 1)}
	var result any
	var err error
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				s.config.Log.Error("work on images panicked", "panic", p)
				err = &pod.Error{Kind: pod.Internal, Err: errors.New("the agent has a bug: see its log")}
			}
		}()
		result, err = work(ctx, news.put)
	}()
	for working := true; working; {
		select {
		case <-news.wake:
		case <-done:
			working = false
		}
		if p := news.take(); p != nil && out.put(p) != nil {
			end() // nobody listens any more
		}
	}
	if err != nil {
		result = map[string]string{"error": err.Error()}
	}
	_ = out.put(result) // the client may have left
}
