package server

import (
	"net/http"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (s *Server) listEvents(w http.ResponseWriter, r *http.Request) {
	watch, err := truth(r, "watch")
	if err != nil {
		s.fail(w, err)
		return
	}
	namespace, name := r.URL.Query().Get("namespace"), r.URL.Query().Get("pod")
	if !watch {
		l := v1.EventList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "EventList"}, Items: []v1.Event{}}
		l.Items = append(l.Items, s.config.Events.Events(namespace, name)...)
		s.answer(w, http.StatusOK, l)
		return
	}
	ctx, end := stream(r)
	defer end()
	out := newLines(w)
	if err := out.begin(); err != nil {
		return // the client has left
	}
	err = s.config.Events.WatchEvents(ctx, namespace, name, func(e v1.Event) error { return out.put(e) })
	s.endOfWatch(ctx.Err() == nil, out, err)
}
