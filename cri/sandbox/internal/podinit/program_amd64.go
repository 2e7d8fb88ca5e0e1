package podinit

import _ "embed"

//go:embed init-amd64
var program []byte
