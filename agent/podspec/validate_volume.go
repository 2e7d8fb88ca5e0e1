package podspec

import (
	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// volumeList checks the volumes, and remembers those without a fault for the mounts.
func (c *checker) volumeList(at *field.Path) {
	c.volumes = map[string]*v1.VolumeSource{}
	made := sets.New[string]() // claims that come to be with the pod
	for i := range c.spec.Volumes {
		if v := &c.spec.Volumes[i]; v.Ephemeral != nil && c.meta.Name != "" {
			made.Insert(c.meta.Name + "-" + v.Name)
		}
	}
	for i := range c.spec.Volumes {
		v, at := &c.spec.Volumes[i], at.Index(i)
		before := len(c.errs)
		c.volume(v, at)
		if c.need(at.Child("name"), v.Name) {
			c.label(at.Child("name"), v.Name)
		}
		if c.volumes[v.Name] != nil {
			c.add(field.Duplicate(at.Child("name"), v.Name))
		}
		if len(c.errs) == before {
			c.volumes[v.Name] = &v.VolumeSource
		}
		if p := v.PersistentVolumeClaim; p != nil && made.Has(p.ClaimName) {
			c.invalid(at.Child("persistentVolumeClaim", "claimName"), p.ClaimName, "must not reference a PVC that gets created for an ephemeral volume")
		}
	}
}

// volume looks into the one source of a volume; the order is the API's, and where
// a name is given twice the API files faults below the second.
func (c *checker) volume(v *v1.Volume, at *field.Path) {
	s := &v.VolumeSource
	u := &union{f: &c.findings, at: at, what: "volume"}
	arm(u, s.EmptyDir, "emptyDir", c.emptyDir)
	arm(u, s.HostPath, "hostPath", c.hostPath)
	arm(u, s.GitRepo, "gitRepo", c.gitRepo)
	arm(u, s.GCEPersistentDisk, "gcePersistentDisk", c.gceDisk, "persistentDisk")
	arm(u, s.AWSElasticBlockStore, "awsElasticBlockStore", c.awsDisk)
	arm(u, s.Secret, "secret", c.secret)
	arm(u, s.NFS, "nfs", c.nfs)
	arm(u, s.ISCSI, "iscsi", c.iscsi)
	c.iscsiLength(v, at)
	arm(u, s.Glusterfs, "glusterfs", c.glusterfs)
	arm(u, s.Flocker, "flocker", c.flocker)
	arm(u, s.PersistentVolumeClaim, "persistentVolumeClaim", func(p *v1.PersistentVolumeClaimVolumeSource, at *field.Path) {
		c.need(at.Child("claimName"), p.ClaimName)
	})
	arm(u, s.RBD, "rbd", c.rbd)
	arm(u, s.Cinder, "cinder", c.cinder)
	arm(u, s.CephFS, "cephFS", c.cephFS, "cephfs")
	arm(u, s.Quobyte, "quobyte", c.quobyte)
	arm(u, s.DownwardAPI, "downwarAPI", c.downwardAPI, "downwardAPI") // sic
	arm(u, s.FC, "fc", c.fibreChannel)
	arm(u, s.FlexVolume, "flexVolume", c.flexVolume)
	arm(u, s.ConfigMap, "configMap", c.configMap)
	arm(u, s.AzureFile, "azureFile", c.azureFile)
	arm(u, s.VsphereVolume, "vsphereVolume", c.vsphere)
	arm(u, s.PhotonPersistentDisk, "photonPersistentDisk", c.photon)
	arm(u, s.PortworxVolume, "portworxVolume", c.portworx)
	arm(u, s.AzureDisk, "azureDisk", c.azureDisk)
	arm(u, s.StorageOS, "storageos", c.storageOS)
	arm(u, s.Projected, "projected", c.projected)
	arm(u, s.ScaleIO, "scaleIO", c.scaleIO)
	arm(u, s.CSI, "csi", c.csi)
	arm(u, s.Ephemeral, "ephemeral", func(e *v1.EphemeralVolumeSource, below *field.Path) {
		c.ephemeral(e, below)
		c.claimName(v.Name, at.Child("name"))
	})
	arm(u, s.Image, "image", c.imageVolume)
	u.end()
}

func (c *checker) emptyDir(e *v1.EmptyDirVolumeSource, at *field.Path) {
	if e.SizeLimit != nil && e.SizeLimit.Sign() < 0 {
		c.forbidden(at.Child("sizeLimit"), apivalidation.IsNegativeErrorMsg)
	}
}

func (c *checker) hostPath(h *v1.HostPathVolumeSource, at *field.Path) {
	if !c.need(at.Child("path"), h.Path) {
		return
	}
	c.noUp(at.Child("path"), h.Path)
	if h.Type != nil {
		oneOf(&c.findings, at.Child("type"), *h.Type, v1.HostPathUnset, v1.HostPathBlockDev, v1.HostPathCharDev, v1.HostPathDirectory,
			v1.HostPathDirectoryOrCreate, v1.HostPathFile, v1.HostPathFileOrCreate, v1.HostPathSocket)
	}
}

func (c *checker) gitRepo(g *v1.GitRepoVolumeSource, at *field.Path) {
	c.need(at.Child("repository"), g.Repository)
	c.below(at.Child("directory"), g.Directory)
}

func (c *checker) secret(s *v1.SecretVolumeSource, at *field.Path) {
	c.need(at.Child("secretName"), s.SecretName)
	c.mode(at.Child("defaultMode"), s.DefaultMode)
	c.items(s.Items, at.Child("items"))
}

func (c *checker) configMap(m *v1.ConfigMapVolumeSource, at *field.Path) {
	c.need(at.Child("name"), m.Name)
	c.mode(at.Child("defaultMode"), m.DefaultMode)
	c.items(m.Items, at.Child("items"))
}

func (c *checker) items(items []v1.KeyToPath, at *field.Path) {
	for i, item := range items {
		at := at.Index(i)
		c.need(at.Child("key"), item.Key)
		c.need(at.Child("path"), item.Path)
		c.file(at.Child("path"), item.Path)
		c.mode(at.Child("mode"), item.Mode)
	}
}

func (c *checker) downwardAPI(d *v1.DownwardAPIVolumeSource, at *field.Path) {
	c.mode(at.Child("defaultMode"), d.DefaultMode)
	c.downwardFiles(d.Items, at)
}

// downwardFiles: the API names the volume, not the item.
func (c *checker) downwardFiles(files []v1.DownwardAPIVolumeFile, at *field.Path) {
	for i := range files {
		f := &files[i]
		c.need(at.Child("path"), f.Path)
		c.file(at.Child("path"), f.Path)
		c.mode(at.Child("mode"), f.Mode)
		switch {
		case f.FieldRef != nil:
			c.fieldRef(f.FieldRef, at.Child("fieldRef"), volumeFields)
			if f.ResourceFieldRef != nil {
				c.invalid(at, f.Path, "fieldRef and resourceFieldRef can not be specified simultaneously")
			}
		case f.ResourceFieldRef != nil:
			c.resourceRef(f.ResourceFieldRef, at.Child("resourceFieldRef"), true)
		default:
			c.required(at, "one of fieldRef and resourceFieldRef is required")
		}
	}
}

func (c *checker) imageVolume(i *v1.ImageVolumeSource, at *field.Path) {
	c.need(at.Child("reference"), i.Reference)
	c.pullPolicy(at.Child("pullPolicy"), i.PullPolicy)
}
