package wire

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// hostIPs returns the node's addresses: of each family the one that it would
// send from to the outside, the family of the first being the node's primary.
// Nothing is sent. A node without a default route has its first global address.
func hostIPs() []string {
	var ips []string
	for network, target := range map[string]string{"udp4": "192.0.2.1:9", "udp6": "[2001:db8::1]:9"} {
		c, err := net.Dial(network, target) // documentation addresses; connecting a datagram socket only asks for a route
		if err != nil {
			continue
		}
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok && !a.IP.IsLoopback() {
			if network == "udp4" {
				ips = append([]string{a.IP.String()}, ips...)
			} else {
				ips = append(ips, a.IP.String())
			}
		}
		_ = c.Close() // nothing was sent
	}
	if len(ips) > 0 {
		return ips
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return []string{n.IP.String()}
		}
	}
	return nil
}

// memoryTotal is the node's memory in bytes.
func memoryTotal() (int64, error) { return meminfo("MemTotal") }

// meminfo is a field of /proc/meminfo, in bytes.
func meminfo(field string) (int64, error) {
	body, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(body), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field+":" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no line %s", field)
}

// kernelAppArmor says that the kernel enforces AppArmor.
func kernelAppArmor() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.TrimSpace(string(b)) == "Y"
}

// allocatable is what pods may request of capacity: huge pages are no other
// memory, and what is reserved stays. More reserved than there is is an error.
func allocatable(capacity, reserved v1.ResourceList) (v1.ResourceList, error) {
	out := capacity.DeepCopy()
	for name, q := range capacity {
		if strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix) {
			take(out, v1.ResourceMemory, q)
		}
	}
	for name, q := range reserved {
		have, ok := out[name]
		if !ok {
			continue // process IDs are no resource that pods request
		}
		if have.Cmp(q) < 0 {
			return nil, fmt.Errorf("systemReserved and kubeReserved keep %s of %s from pods, but the node has only %s: lower them", q.String(), name, have.String())
		}
		take(out, name, q)
	}
	return out, nil
}

func take(from v1.ResourceList, name v1.ResourceName, q resource.Quantity) {
	have := from[name]
	have.Sub(q)
	if have.Sign() < 0 {
		have.Set(0)
	}
	from[name] = have
}

// capacity is what the node has.
func capacity(rootDir string, maxPods int) (v1.ResourceList, error) {
	memory, err := memoryTotal()
	if err != nil {
		return nil, err
	}
	r := v1.ResourceList{
		v1.ResourceCPU:    *resource.NewQuantity(int64(goruntime.NumCPU()), resource.DecimalSI),
		v1.ResourceMemory: *resource.NewQuantity(memory, resource.BinarySI),
		v1.ResourcePods:   *resource.NewQuantity(int64(maxPods), resource.DecimalSI),
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(rootDir, &fs); err != nil {
		return nil, fmt.Errorf("ask for the size of the file system of %s: %w", rootDir, err)
	}
	r[v1.ResourceEphemeralStorage] = *resource.NewQuantity(int64(fs.Blocks)*fs.Bsize, resource.BinarySI)
	pools, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	for _, pool := range pools {
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(pool), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		body, err := os.ReadFile(filepath.Join(pool, "nr_hugepages"))
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64)
		if err != nil || n == 0 {
			continue
		}
		size := resource.NewQuantity(kib*1024, resource.BinarySI)
		r[v1.ResourceName(v1.ResourceHugePagesPrefix+size.String())] = *resource.NewQuantity(kib*1024*n, resource.BinarySI)
	}
	return r, nil
}

// nodeName is the configured name, else the host's, in lower case as Kubernetes wants it.
func nodeName(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("ask for the host's name: %w", err)
	}
	return strings.ToLower(name), nil
}
