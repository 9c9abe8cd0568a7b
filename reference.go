// Package sonde holds the reference pages that the binary prints. The pages that
// people read are the only source: what the binary explains cannot drift from
// them.
package sonde

import _ "embed"

// ConfigPage is CONFIG.md.
//
//go:embed CONFIG.md
var ConfigPage string

// ConfigExample is examples/sonde.yaml: every key with its default.
//
//go:embed examples/sonde.yaml
var ConfigExample string
