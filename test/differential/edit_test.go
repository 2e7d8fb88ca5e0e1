package differential

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// edit is one change of a pod, which can be made again: where, and the seed of
// the random choices of what.
type edit struct {
	path string
	seed uint64
}

// change edits p at random, in a field that may be changed, and says how. Every
// kind of field has the same chance, however often it occurs in p.
func change(rng *rand.Rand, p *v1.Pod, may fields) edit {
	by := map[string][]string{}
	var kinds []string
	all := spots(p)
	for _, s := range all {
		if by[s.kind] == nil {
			if !may.fit(s.kind) {
				continue
			}
			kinds = append(kinds, s.kind)
		}
		by[s.kind] = append(by[s.kind], s.path)
	}
	e := edit{pick(rng, by[pick(rng, kinds)]), rng.Uint64()}
	e.makeIn(all)
	return e
}

// make changes p. False: p has no such place any more.
func (e edit) make(p *v1.Pod) bool { return e.makeIn(spots(p)) }

func (e edit) makeIn(all []spot) bool {
	i := slices.IndexFunc(all, func(s spot) bool { return s.path == e.path })
	if i < 0 {
		return false
	}
	f := filler{rng: rand.New(rand.NewPCG(e.seed, 0)), pod: all}
	f.change(all[i].v, e.path)
	return true
}

// fields is a set of fields by a pattern of their paths.
type fields struct {
	pattern *regexp.Regexp
	known   *sync.Map // path → whether it fits
}

func matching(pattern string) fields { return fields{regexp.MustCompile(pattern), &sync.Map{}} }

func (f fields) fit(path string) bool {
	if fits, ok := f.known.Load(path); ok {
		return fits.(bool)
	}
	fits := f.pattern.MatchString(path)
	f.known.Store(path, fits)
	return fits
}

func pick[T any](rng *rand.Rand, of []T) T { return of[rng.IntN(len(of))] }

// filler makes values.
type filler struct {
	rng *rand.Rand
	// all: leave no field empty.
	all bool
	// pod is where values are repeated from.
	pod []spot
}

func (f filler) one(in int) bool { return f.rng.IntN(in) == 0 }

// change gives v another value.
func (f filler) change(v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		switch {
		case v.IsNil():
			v.Set(reflect.New(v.Type().Elem()))
			f.fill(v.Elem(), path)
		case v.Elem().Kind() != reflect.Struct && !f.one(3):
			to := reflect.New(v.Type().Elem()) // the pointer may be shared
			to.Elem().Set(v.Elem())
			v.Set(to)
			f.change(v.Elem(), path)
		case f.one(3): // empty, but there
			v.Set(reflect.New(v.Type().Elem()))
		default:
			v.SetZero()
		}
	case reflect.Slice:
		f.changeSlice(v, path)
	case reflect.Map:
		f.changeMap(v, path)
	case reflect.Struct:
		if f.one(3) && v.Type() != reflect.TypeFor[resource.Quantity]() {
			v.SetZero()
			return
		}
		f.fill(v, path)
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.String:
		v.SetString(f.text(v.Type(), path, true))
	default:
		f.fill(v, path)
	}
}

func (f filler) changeSlice(v reflect.Value, path string) {
	n := v.Len()
	grow := func() {
		e := reflect.New(v.Type().Elem()).Elem()
		f.fill(e, path+"[]")
		v.Set(reflect.Append(v.Slice3(0, n, n), e))
	}
	if n == 0 {
		grow()
		return
	}
	i := f.rng.IntN(n)
	switch f.rng.IntN(8) {
	case 0:
		v.SetZero()
	case 1:
		grow()
	case 2: // without one
		v.Set(reflect.AppendSlice(v.Slice3(0, i, i), v.Slice(i+1, n)))
	case 3: // one of them very often
		many := pick(f.rng, []int{7, 33, 65, 257})
		if v.Type().Elem().Kind() == reflect.Struct && v.Type().Elem().NumField() > 12 {
			many = 3
		}
		for range many {
			v.Set(reflect.Append(v, deepCopy(v.Index(i))))
		}
	case 4:
		if n > 1 {
			j := f.rng.IntN(n)
			a, b := deepCopy(v.Index(i)), deepCopy(v.Index(j))
			v.Index(i).Set(b)
			v.Index(j).Set(a)
			return
		}
		grow()
	default: // one twice
		v.Set(reflect.Append(v.Slice3(0, n, n), deepCopy(v.Index(i))))
	}
}

func deepCopy(v reflect.Value) reflect.Value {
	if v.Kind() != reflect.Struct {
		return v
	}
	to := reflect.New(v.Type())
	reflect.ValueOf(to.Interface()).MethodByName("DeepCopyInto") // every API struct has one
	v.Addr().MethodByName("DeepCopyInto").Call([]reflect.Value{to})
	return to.Elem()
}

func (f filler) changeMap(v reflect.Value, path string) {
	next := reflect.MakeMap(v.Type())
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	for _, k := range keys {
		next.SetMapIndex(k, v.MapIndex(k))
	}
	op := f.rng.IntN(4)
	if len(keys) == 0 {
		op = 0
	}
	switch op {
	case 0, 1: // another
		f.put(next, path)
	case 2: // another value
		value := reflect.New(v.Type().Elem()).Elem()
		f.change(value, path+"[]")
		next.SetMapIndex(pick(f.rng, keys), value)
	case 3: // one less
		next.SetMapIndex(pick(f.rng, keys), reflect.Value{})
	}
	v.Set(next)
}

func (f filler) put(m reflect.Value, path string) {
	key := reflect.ValueOf(f.text(m.Type().Key(), path+"{}", !f.all)).Convert(m.Type().Key())
	if m.Type() == reflect.TypeFor[v1.ResourceList]() {
		key = reflect.ValueOf(v1.ResourceName(pick(f.rng, resources)))
	}
	value := reflect.New(m.Type().Elem()).Elem()
	f.fill(value, path+"[]")
	m.SetMapIndex(key, value)
}

// fill gives v a value, and most of what is in it.
func (f filler) fill(v reflect.Value, path string) {
	switch x := v.Addr().Interface().(type) {
	case *resource.Quantity:
		*x = resource.MustParse(pick(f.rng, quantities))
		return
	case *intstr.IntOrString:
		*x = pick(f.rng, ports)
		return
	case *metav1.Time:
		*x = metav1.NewTime(time.Unix(1700000000, 0).UTC())
		return
	case *metav1.FieldsV1:
		x.Raw = []byte(`{"f:a":{}}`)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if f.all || !f.one(3) {
			v.Set(reflect.New(v.Type().Elem()))
			f.fill(v.Elem(), path)
		}
	case reflect.Struct:
		f.fillFields(v, path)
	case reflect.Slice:
		if f.all || !f.one(3) {
			v.Set(reflect.MakeSlice(v.Type(), 1+f.rng.IntN(2), 2))
			for i := range v.Len() {
				f.fill(v.Index(i), path+"[]")
			}
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		f.put(v, path)
	case reflect.String:
		v.SetString(f.text(v.Type(), path, !f.all && f.one(3)))
	case reflect.Bool:
		v.SetBool(f.all || f.one(2))
	case reflect.Int32, reflect.Int64:
		n := pick(f.rng, numbers)
		for f.all && n == 0 {
			n = pick(f.rng, numbers)
		}
		if v.OverflowInt(n) {
			n = int64(int32(n)) | 1
		}
		v.SetInt(n)
	case reflect.Uint8:
		v.SetUint(7)
	default:
		panic(fmt.Sprintf("%s: no values of %s are known", path, v.Type()))
	}
}

// fillFields fills a struct. Of a union, mostly one member.
func (f filler) fillFields(v reflect.Value, path string) {
	only := -1
	if !f.all && unions[v.Type()] && !f.one(8) {
		only = f.rng.IntN(v.NumField())
	}
	for i := range v.NumField() {
		name, inline := jsonName(v.Type().Field(i))
		switch {
		case name == "-" || only >= 0 && i != only && v.Field(i).Kind() == reflect.Pointer:
		case inline:
			f.fillFields(v.Field(i), path)
		default:
			f.fill(v.Field(i), path+"."+name)
		}
	}
}

// text makes a string: of the values that its type or its field is known for,
// one that stands elsewhere in the pod, or one that is odd.
func (f filler) text(t reflect.Type, path string, odd bool) string {
	known := enums[t]
	for _, p := range pools {
		if strings.HasSuffix(path, p.suffix) {
			known = p.values
		}
	}
	switch {
	case odd && f.one(2) || known == nil && odd:
		if s := f.again(path); s != "" && f.one(3) {
			return s
		}
		return pick(f.rng, odds)
	case known != nil:
		return pick(f.rng, known)
	}
	if s := f.again(path); s != "" {
		return s
	}
	return pick(f.rng, []string{"a", "b", "main", "x-y"})
}

// again repeats a string that a field of the same name has in the pod.
func (f filler) again(path string) string {
	name := path[strings.LastIndexByte(path, '.')+1:]
	var have []string
	for _, s := range f.pod {
		if s.v.Kind() == reflect.String && strings.HasSuffix(s.path, name) && s.path != path {
			have = append(have, s.v.String())
		}
	}
	if len(have) == 0 {
		return ""
	}
	return pick(f.rng, have)
}
