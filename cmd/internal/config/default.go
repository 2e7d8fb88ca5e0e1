package config

import _ "embed"

//go:embed default.yaml
var defaults string

// Default is a configuration file with every field, its default and what it means.
func Default() string { return defaults }
