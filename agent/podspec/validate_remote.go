package podspec

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The volumes of this file come from elsewhere: most of them have a few fields
// without which there is nothing to mount.

func (c *checker) gceDisk(d *v1.GCEPersistentDiskVolumeSource, at *field.Path) {
	c.need(at.Child("pdName"), d.PDName)
	c.span(at.Child("partition"), int64(d.Partition), 0, 255)
}

func (c *checker) awsDisk(d *v1.AWSElasticBlockStoreVolumeSource, at *field.Path) {
	c.need(at.Child("volumeID"), d.VolumeID)
	c.span(at.Child("partition"), int64(d.Partition), 0, 255)
}

func (c *checker) nfs(n *v1.NFSVolumeSource, at *field.Path) {
	c.need(at.Child("server"), n.Server)
	c.need(at.Child("path"), n.Path)
	if !path.IsAbs(n.Path) {
		c.invalid(at.Child("path"), n.Path, "must be an absolute path")
	}
}

// The three forms of a name in iSCSI.
var iscsiNames = map[string]*regexp.Regexp{
	"iqn": regexp.MustCompile(`iqn\.\d{4}-\d{2}\.[[:alnum:].-]+:[^,;*&$|\s]+$`),
	"eui": regexp.MustCompile(`^eui.[[:alnum:]]{16}$`),
	"naa": regexp.MustCompile(`^naa.[[:alnum:]]{32}$`),
}

func (c *checker) iscsiName(at *field.Path, name string) {
	if form := iscsiNames[name[:min(3, len(name))]]; form == nil {
		c.invalid(at, name, "must start with iqn, eui or naa")
	} else if !form.MatchString(name) {
		c.invalid(at, name, "must look like iqn.2001-04.com.example:disk1, eui.<16 digits> or naa.<32 digits>")
	}
}

func (c *checker) iscsi(s *v1.ISCSIVolumeSource, at *field.Path) {
	c.need(at.Child("targetPortal"), s.TargetPortal)
	if c.need(at.Child("iqn"), s.IQN) {
		c.iscsiName(at.Child("iqn"), s.IQN)
	}
	c.span(at.Child("lun"), int64(s.Lun), 0, 255)
	if (s.DiscoveryCHAPAuth || s.SessionCHAPAuth) && s.SecretRef == nil {
		c.required(at.Child("secretRef"), "")
	}
	if s.InitiatorName != nil {
		c.iscsiName(at.Child("initiatorname"), *s.InitiatorName)
	}
}

// iscsiLength: with an initiator, <volume name>:<portal> becomes a name itself.
func (c *checker) iscsiLength(v *v1.Volume, at *field.Path) {
	if s := v.ISCSI; s != nil && s.InitiatorName != nil && len(v.Name)+1+len(s.TargetPortal) > 64 {
		c.invalid(at.Child("name"), v.Name, "<volume name>:<iscsi.targetPortal> must not be longer than 64 characters if iscsi.initiatorName is specified")
	}
}

func (c *checker) fibreChannel(f *v1.FCVolumeSource, at *field.Path) {
	names, ids := len(f.TargetWWNs) > 0, len(f.WWIDs) > 0
	switch {
	case !names && !ids:
		c.required(at.Child("targetWWNs"), "must specify either targetWWNs or wwids, but not both")
	case names && ids:
		c.invalid(at.Child("targetWWNs"), f.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously")
	}
	switch {
	case names && f.Lun == nil:
		c.required(at.Child("lun"), "lun is required if targetWWNs is specified")
	case names:
		c.span(at.Child("lun"), int64(*f.Lun), 0, 255)
	}
}

func (c *checker) glusterfs(g *v1.GlusterfsVolumeSource, at *field.Path) {
	c.need(at.Child("endpoints"), g.EndpointsName)
	c.need(at.Child("path"), g.Path)
}

func (c *checker) flocker(f *v1.FlockerVolumeSource, at *field.Path) {
	switch {
	case f.DatasetName == "" && f.DatasetUUID == "":
		c.required(at, "one of datasetName and datasetUUID is required")
	case f.DatasetName != "" && f.DatasetUUID != "":
		c.invalid(at, f.DatasetName, "datasetName and datasetUUID can not be specified simultaneously")
	}
	if strings.Contains(f.DatasetName, "/") {
		c.invalid(at.Child("datasetName"), f.DatasetName, "must not contain '/'")
	}
}

func (c *checker) rbd(r *v1.RBDVolumeSource, at *field.Path) {
	if len(r.CephMonitors) == 0 {
		c.required(at.Child("monitors"), "")
	}
	c.need(at.Child("image"), r.RBDImage)
}

func (c *checker) cephFS(f *v1.CephFSVolumeSource, at *field.Path) {
	if len(f.Monitors) == 0 {
		c.required(at.Child("monitors"), "")
	}
}

// secretRef: a reference that is given has a name.
func (c *checker) secretRef(r *v1.LocalObjectReference, at *field.Path) {
	if r != nil {
		c.need(at.Child("name"), r.Name)
	}
}

func (c *checker) cinder(d *v1.CinderVolumeSource, at *field.Path) {
	c.need(at.Child("volumeID"), d.VolumeID)
	c.secretRef(d.SecretRef, at.Child("secretRef"))
}

// hostPort is host:port, the host in brackets if it has colons itself.
var hostPort = regexp.MustCompile(`^(\[[^\[\]]*\]|[^:\[\]]*):[^:\[\]]*$`)

const maxTenant = 64

func (c *checker) quobyte(q *v1.QuobyteVolumeSource, at *field.Path) {
	const why = "must be a host:port pair or multiple pairs separated by commas"
	switch registry := at.Child("registry"); {
	case q.Registry == "":
		c.required(registry, why)
	case len(q.Tenant) > maxTenant:
		c.required(at.Child("tenant"), "must be a UUID and may not exceed a length of 64 characters")
	default:
		for pair := range strings.SplitSeq(q.Registry, ",") {
			if !hostPort.MatchString(pair) {
				c.invalid(registry, q.Registry, why)
			}
		}
	}
	c.need(at.Child("volume"), q.Volume)
}

func (c *checker) flexVolume(v *v1.FlexVolumeSource, at *field.Path) {
	c.need(at.Child("driver"), v.Driver)
	for _, k := range slices.Sorted(maps.Keys(v.Options)) {
		domain, _, _ := strings.Cut(k, "/")
		domain = "." + strings.ToLower(domain)
		if strings.HasSuffix(domain, ".kubernetes.io") || strings.HasSuffix(domain, ".k8s.io") {
			c.invalid(at.Child("options").Key(k), k, "kubernetes.io and k8s.io namespaces are reserved")
		}
	}
}

func (c *checker) azureFile(f *v1.AzureFileVolumeSource, at *field.Path) {
	c.need(at.Child("secretName"), f.SecretName)
	c.need(at.Child("shareName"), f.ShareName)
}

func (c *checker) azureDisk(d *v1.AzureDiskVolumeSource, at *field.Path) {
	c.need(at.Child("diskName"), d.DiskName)
	c.need(at.Child("diskURI"), d.DataDiskURI)
	if m := d.CachingMode; m != nil {
		oneOf(&c.findings, at.Child("cachingMode"), *m, v1.AzureDataDiskCachingNone, v1.AzureDataDiskCachingReadOnly, v1.AzureDataDiskCachingReadWrite)
	}
	if d.Kind == nil {
		return
	}
	oneOf(&c.findings, at.Child("kind"), *d.Kind, v1.AzureDedicatedBlobDisk, v1.AzureManagedDisk, v1.AzureSharedBlobDisk)
	start, example := "https://", "https://<account>.blob.core.windows.net/<container>/<disk>.vhd"
	if *d.Kind == v1.AzureManagedDisk {
		start, example = "/subscriptions/", "/subscriptions/<id>/resourcegroups/<group>/providers/microsoft.compute/disks/<id>"
	}
	if !strings.HasPrefix(d.DataDiskURI, start) {
		c.add(field.NotSupported(at.Child("diskURI"), d.DataDiskURI, []string{example}))
	}
}

func (c *checker) vsphere(v *v1.VsphereVirtualDiskVolumeSource, at *field.Path) {
	c.need(at.Child("volumePath"), v.VolumePath)
}

func (c *checker) photon(p *v1.PhotonPersistentDiskVolumeSource, at *field.Path) {
	c.need(at.Child("pdID"), p.PdID)
}

func (c *checker) portworx(p *v1.PortworxVolumeSource, at *field.Path) {
	c.need(at.Child("volumeID"), p.VolumeID)
}

func (c *checker) scaleIO(s *v1.ScaleIOVolumeSource, at *field.Path) {
	c.need(at.Child("gateway"), s.Gateway)
	c.need(at.Child("system"), s.System)
	c.need(at.Child("volumeName"), s.VolumeName)
}

func (c *checker) storageOS(s *v1.StorageOSVolumeSource, at *field.Path) {
	if c.need(at.Child("volumeName"), s.VolumeName) {
		c.label(at.Child("volumeName"), s.VolumeName)
	}
	if s.VolumeNamespace != "" {
		c.label(at.Child("volumeNamespace"), s.VolumeNamespace)
	}
	c.secretRef(s.SecretRef, at.Child("secretRef"))
}

const maxDriver = 63

func (c *checker) csi(s *v1.CSIVolumeSource, at *field.Path) {
	if driver := at.Child("driver"); c.need(driver, s.Driver) {
		if len(s.Driver) > maxDriver {
			c.add(field.TooLong(driver, "", maxDriver))
		}
		c.invalid(driver, s.Driver, validation.IsDNS1123Subdomain(strings.ToLower(s.Driver))...)
	}
	if r := s.NodePublishSecretRef; r != nil && c.need(at.Child("nodePublishSecretRef", "name"), r.Name) {
		c.objectName(at.Child("name"), r.Name) // where the API files it
	}
}
