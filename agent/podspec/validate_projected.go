package podspec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// projection is one projected volume: no two of its sources write the same file.
type projection struct {
	*checker
	at    *field.Path // the volume: faults that concern several sources are filed here
	paths sets.Set[string]
}

func (c *checker) projected(p *v1.ProjectedVolumeSource, at *field.Path) {
	c.mode(at.Child("defaultMode"), p.DefaultMode)
	x := projection{c, at, sets.New[string]()}
	for i := range p.Sources {
		s, at := &p.Sources[i], at.Child("sources").Index(i)
		n := 0
		count := func(isSet bool) bool {
			if isSet {
				n++
			}
			return isSet
		}
		if count(s.Secret != nil) {
			x.keys(s.Secret.Name, s.Secret.Items, at.Child("secret"))
		}
		if count(s.ConfigMap != nil) {
			x.keys(s.ConfigMap.Name, s.ConfigMap.Items, at.Child("configMap"))
		}
		if count(s.DownwardAPI != nil) {
			c.downwardFiles(s.DownwardAPI.Items, at.Child("downwardAPI"))
			for _, f := range s.DownwardAPI.Items {
				x.given(f.Path)
			}
		}
		if count(s.ServiceAccountToken != nil) {
			x.token(s.ServiceAccountToken, at.Child("serviceAccountToken"))
		}
		if count(s.ClusterTrustBundle != nil) {
			x.trustBundle(s.ClusterTrustBundle, at.Child("clusterTrustBundle"))
		}
		if count(s.PodCertificate != nil) {
			x.certificate(s.PodCertificate, at.Child("podCertificate"))
		}
		if n > 1 {
			c.forbidden(at, "may not specify more than 1 volume type per source")
		}
	}
}

func (x projection) given(path string) {
	if path != "" {
		x.unique(path)
	}
}

func (x projection) unique(path string) {
	if x.paths.Has(path) {
		x.invalid(x.at, path, "conflicting duplicate paths")
	}
	x.paths.Insert(path)
}

func (x projection) keys(name string, items []v1.KeyToPath, at *field.Path) {
	x.need(at.Child("name"), name)
	x.items(items, at.Child("items"))
	for _, item := range items {
		x.given(item.Path)
	}
}

func (x projection) token(t *v1.ServiceAccountTokenProjection, at *field.Path) {
	var seconds int64
	if t.ExpirationSeconds != nil {
		seconds = *t.ExpirationSeconds
	}
	if seconds < 10*60 || seconds > 1<<32 {
		x.invalid(at.Child("expirationSeconds"), seconds, "must be between 10 minutes and 2^32 seconds")
	}
	if x.need(x.at.Child("path"), t.Path) {
		x.file(x.at.Child("path"), t.Path)
	}
}

func (x projection) trustBundle(b *v1.ClusterTrustBundleProjection, at *field.Path) {
	switch {
	case b.Name != nil && b.SignerName != nil:
		x.invalid(at, *b.Name, "only one of name and signerName may be used")
	case b.Name != nil:
		x.need(at.Child("name"), *b.Name)
		x.bundleName(at.Child("name"), *b.Name)
		if b.LabelSelector != nil {
			x.invalid(at.Child("labelSelector"), "", "labelSelector must be unset if name is specified")
		}
	case b.SignerName != nil:
		x.need(at.Child("signerName"), *b.SignerName)
		x.signer(at.Child("signerName"), *b.SignerName)
		x.add(metavalidation.ValidateLabelSelector(b.LabelSelector, metavalidation.LabelSelectorValidationOptions{}, at.Child("labelSelector"))...)
	default:
		x.required(at, "either name or signerName must be specified")
	}
	x.need(at.Child("path"), b.Path)
	x.file(at.Child("path"), b.Path)
	x.unique(b.Path)
}

// bundleName: the name of a bundle of a signer is the signer's, its slash turned
// into a colon, a colon, and a name.
func (x projection) bundleName(at *field.Path, name string) {
	own := name
	if i := strings.LastIndex(name, ":"); i >= 0 {
		if i == 0 || strings.Contains(name[:i], "/") {
			x.invalid(at, name, "must start with the name of a signer, with ':' for '/', as in example.com:signer:name")
			return
		}
		own = name[i+1:]
	}
	x.objectName(at, own)
}

var keyTypes = []string{"RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"}

// Certificates live for an hour at least; those of Kubernetes' own signers for a
// day at most, others for 91.
const (
	minCertificate           = 3600
	maxCertificate           = 91 * 24 * 3600
	maxKubernetesCertificate = 24 * 3600
)

func (x projection) certificate(p *v1.PodCertificateProjection, at *field.Path) {
	x.signer(at.Child("signerName"), p.SignerName)
	if p.UserAnnotations != nil {
		at := at.Child("userAnnotations")
		for _, k := range slices.Sorted(maps.Keys(p.UserAnnotations)) {
			x.add(validation.IsDomainPrefixedKey(at, strings.ToLower(k))...)
		}
		if apivalidation.ValidateAnnotationsSize(p.UserAnnotations) != nil {
			x.add(field.TooLong(at, "", apivalidation.TotalAnnotationSizeLimitB))
		}
	}
	oneOf(&x.findings, at.Child("keyType"), p.KeyType, keyTypes...)
	if s := p.MaxExpirationSeconds; s != nil {
		most := int64(maxCertificate)
		if host, _, _ := strings.Cut(p.SignerName, "/"); strings.HasSuffix("."+host, ".kubernetes.io") {
			most = maxKubernetesCertificate
		}
		x.span(at.Child("maxExpirationSeconds"), int64(*s), minCertificate, most)
	}
	none := true
	for _, f := range []struct{ name, path string }{
		{"credentialBundlePath", p.CredentialBundlePath}, {"keyPath", p.KeyPath}, {"certificateChainPath", p.CertificateChainPath},
	} {
		if f.path != "" {
			none = false
			x.file(at.Child(f.name), f.path)
			x.unique(f.path)
		}
	}
	if none {
		x.required(at, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath")
	}
}

// maxSigner fits <domain>/<namespace>.<name>.
const maxSigner = validation.DNS1123SubdomainMaxLength + 1 + validation.DNS1123LabelMaxLength + 1 + validation.DNS1123SubdomainMaxLength

// signer checks example.com/name: a domain of two parts at least, and a name.
func (f *findings) signer(at *field.Path, name string) {
	if !f.need(at, name) {
		return
	}
	domain, path, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(path, "/") {
		f.invalid(at, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
		return
	}
	if len(domain) > validation.DNS1123SubdomainMaxLength {
		f.add(field.TooLong(at, "", validation.DNS1123SubdomainMaxLength))
	}
	f.parts(at, domain, validation.IsDNS1123Label)
	if !strings.Contains(domain, ".") {
		f.invalid(at, domain, "should be a domain with at least two segments separated by dots")
	}
	f.parts(at, path, validation.IsDNS1123Subdomain)
	if len(name) > maxSigner {
		f.add(field.TooLong(at, "", maxSigner))
	}
}

// parts checks what dots separate, and tells of the first bad part alone.
func (f *findings) parts(at *field.Path, dotted string, check func(string) []string) {
	for part := range strings.SplitSeq(dotted, ".") {
		if bad := check(part); len(bad) > 0 {
			for _, why := range bad {
				f.invalid(at, dotted, fmt.Sprintf("its part %q: %s", part, why))
			}
			return
		}
	}
}
