// Package deploy holds tests of what deploy/ and examples/ hold for an operator: the
// configurations run against real brokers as they are written, but for addresses and
// folders; units and compose file are checked by the programs that will read them.
package deploy
