// Package config owns Berth's own configuration: the file (berth.dev/v1alpha1,
// kind Configuration), its defaults, the flags that override it, and what is
// wrong with any of them, told with file, line and field.
package config
