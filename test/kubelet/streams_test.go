package kubelet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/test/patience"
)

// exitCode is that of a command that ran.
func exitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

func (l *lab) logs() {
	l.apply(simple("talker", "echo first; echo second >&2; n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); echo line $n; sleep 0.2; done; echo last; exit 3", "", ""))
	l.ready("talker")
	l.expect("logs", l.kubectl("logs", "talker"), "first\n", "second\n", "line 1\n")
	if out := l.kubectl("logs", "talker", "--tail=1"); strings.Count(out, "\n") != 1 {
		l.t.Errorf("--tail=1 gave %q", out)
	}
	if out := l.kubectl("logs", "talker", "--timestamps", "--limit-bytes=40"); !regexp.MustCompile(`^\d{4}-\d\d-\d\dT[0-9:.]+Z first`).MatchString(out) {
		l.t.Errorf("--timestamps gave %q", out)
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), patience.For(time.Minute))
	defer cancel()
	follow := l.cluster.Command(ctx, "logs", "-f", "talker")
	out, err := follow.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		l.t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var last string
	for n := 0; lines.Scan(); n++ {
		if last = lines.Text(); n == 5 {
			l.kubectl("exec", "talker", "--", "touch", "/tmp/stop")
		}
	}
	if err := follow.Wait(); err != nil {
		l.t.Errorf("logs -f: %v", err)
	}
	if last != "last" {
		l.t.Errorf("logs -f ended with %q", last)
	}
	previous := ""
	for end := time.Now().Add(patience.For(30 * time.Second)); time.Now().Before(end) && previous == ""; time.Sleep(500 * time.Millisecond) {
		if got, err := l.try("", "logs", "talker", "--previous"); err == nil {
			previous = got
		}
	}
	l.expect("logs --previous", previous, "first\n", "last\n")
	l.remove("pod", "talker")
}

func (l *lab) exec() {
	l.apply(simple("doer", forever, "", ""))
	l.ready("doer")
	if out := l.kubectl("exec", "doer", "--", "sh", "-c", "echo $((6*7))"); out != "42\n" {
		l.t.Errorf("output %q", out)
	}
	if _, err := l.try("", "exec", "doer", "--", "sh", "-c", "exit 17"); exitCode(err) != 17 {
		l.t.Errorf("exit code: %v", err)
	}
	if out, err := l.try("over\nthere\n", "exec", "-i", "doer", "--", "sort"); err != nil || out != "over\nthere\n" {
		l.t.Errorf("stdin: %q %v", out, err)
	}
	big := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB
	if out, err := l.try(big, "exec", "-i", "doer", "--", "cat"); err != nil || out != big {
		l.t.Errorf("a MiB through cat: %d bytes, %v", len(out), err)
	}
	if out, err := l.try("", "exec", "doer", "--", "nonesuch"); err == nil || !strings.Contains(out, "nonesuch") {
		l.t.Errorf("a command that does not exist: %q %v", out, err)
	}
	if out := l.kubectl("exec", "doer", "--", "sh", "-c", "echo out; echo err >&2"); !strings.Contains(out, "out") || !strings.Contains(out, "err") {
		l.t.Errorf("both outputs: %q", out)
	}
	if script, err := exec.LookPath("script"); err == nil {
		ctx, cancel := context.WithTimeout(l.t.Context(), patience.For(30*time.Second))
		defer cancel()
		kubectl := strings.Join(l.cluster.Command(ctx, "exec", "-it", "doer", "--", "sh", "-c", "'tty; exit 5'").Args, " ")
		terminal := exec.CommandContext(ctx, script, "-qec", kubectl, "/dev/null")
		out, err := terminal.CombinedOutput()
		if exitCode(err) != 5 || !bytes.Contains(out, []byte("/dev/pts/")) {
			l.t.Errorf("exec -it: %q %v", out, err)
		}
	}
	l.remove("pod", "doer")
}

func (l *lab) attach() {
	l.apply(simple("listener", "while read x; do echo heard $x; done; echo over; sleep 1", "stdin: true\nstdinOnce: true", "restartPolicy: Never"))
	l.ready("listener")
	// kubectl stays until the container has ended, which the end of its input brings about.
	out, err := l.try("one\ntwo\n", "attach", "-i", "listener", "--pod-running-timeout=20s")
	if err != nil {
		l.t.Errorf("attach: %v", err)
	}
	l.ended("listener", v1.PodSucceeded)
	said := l.kubectl("logs", "listener")
	if said != "heard one\nheard two\nover\n" || !strings.Contains(out, "heard two\nover\n") {
		l.t.Errorf("the container said %q; attach %q", said, out)
	}
	l.remove("pod", "listener")
}

func (l *lab) portForward() {
	l.apply(fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  terminationGracePeriodSeconds: 2\n  containers:\n"+
		"  - {name: c, image: %s, imagePullPolicy: Never, command: [/workload], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}\n", workloadImage))
	l.ready("web")
	ctx, cancel := context.WithTimeout(l.t.Context(), patience.For(time.Minute))
	defer cancel()
	forward := l.cluster.Command(ctx, "port-forward", "pod/web", ":8080")
	out, err := forward.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = forward.Process.Kill(); _ = forward.Wait() }()
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		l.t.Fatal("port-forward said nothing")
	}
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(lines.Text())
	for range 3 {
		r, err := http.Get("http://" + address + "/name")
		if err != nil {
			l.t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || !strings.HasPrefix(string(body), "web") {
			l.t.Errorf("through port-forward: %q %v", body, err)
		}
	}
	l.remove("pod", "web")
}

func (l *lab) copy() {
	l.apply(simple("box", forever, "", ""))
	l.ready("box")
	dir := l.t.TempDir()
	there, back := filepath.Join(dir, "there"), filepath.Join(dir, "back")
	body := bytes.Repeat([]byte("some of it\n"), 50000)
	if err := os.WriteFile(there, body, 0o640); err != nil {
		l.t.Fatal(err)
	}
	l.kubectl("cp", there, "box:/tmp/it")
	l.kubectl("cp", "box:/tmp/it", back)
	got, err := os.ReadFile(back)
	if err != nil || !bytes.Equal(got, body) {
		l.t.Errorf("came back as %d bytes, %v", len(got), err)
	}
	l.remove("pod", "box")
}

func (l *lab) debug() {
	l.apply(simple("patient", forever, "", ""))
	l.ready("patient")
	l.kubectl("debug", "patient", "--image="+workloadImage, "--image-pull-policy=Never", "--target=c", "-c", "doctor", "--profile=general", "--",
		"sh", "-c", "tr '\\0' ' ' </proc/1/cmdline; echo; echo seen; sleep 3600")
	for end := time.Now().Add(patience.For(30 * time.Second)); ; time.Sleep(300 * time.Millisecond) {
		out, err := l.try("", "logs", "patient", "-c", "doctor")
		if err == nil && strings.Contains(out, "trap 'exit 0' TERM") && strings.Contains(out, "seen\n") {
			break
		}
		if time.Now().After(end) {
			l.t.Fatalf("the ephemeral container said %q %v", out, err)
		}
	}
	l.remove("pod", "patient")
}
