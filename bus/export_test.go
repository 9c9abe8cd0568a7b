package bus

import "github.com/nats-io/nats.go"

// InProcess lets a test reach an embedded server with a client of its own.
func InProcess(e *EmbeddedServer) nats.Option { return nats.InProcessServer(e.s) }
