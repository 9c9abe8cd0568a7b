package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sonde/config"
	"sonde/consumers/detector"
)

// answerTimeout bounds the wait for each other process.
const answerTimeout = 3 * time.Second

// maxSocketPath is what fits beside the suffix that the agent binds first.
const maxSocketPath = 103

// socket looks at the place where engines find the agent.
func socket(path string) []Finding {
	if len(path) > maxSocketPath {
		return one(Fail, "socket", fmt.Sprintf("%s has %d bytes; a unix socket has at most %d", path, len(path),
			maxSocketPath), "set agent.socket to a shorter path")
	}
	folder, err := nearest(filepath.Dir(path))
	if err != nil {
		return one(Fail, "socket", err.Error(), "set agent.socket to a path in a folder of yours")
	}
	if holder := lockHolder(path + ".lock"); holder != "" {
		return one(OK, "socket", path+" is served by "+holder, "")
	}
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode().Type() != fs.ModeSocket:
		return one(Fail, "socket", path+" is a file that is no socket", "remove it, or set agent.socket to another path")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return one(Fail, "socket", err.Error(), "set agent.socket to a path in a folder of yours")
	case !writable(folder):
		return one(Fail, "socket", folder+" is not writable for this user", "set agent.socket to a path in a folder of yours")
	case err == nil:
		return one(OK, "socket", path+" was left by an agent that is gone; the next one replaces it", "")
	}
	return one(OK, "socket", path+" is free; engines of the same user or group may connect", "")
}

// httpListen says whether the address is free, or who answers there.
func httpListen(ctx context.Context, address string) []Finding {
	if address == "" {
		return one(OK, "http", "off: no /metrics, no sonde top", "")
	}
	bound := bindable(address)
	if bound == nil {
		return one(OK, "http", address+" is free", "")
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if live(ctx, address) {
		return one(OK, "http", "sonde run answers at "+address, "")
	}
	return one(Fail, "http", bound.Error(), "set http.listen to an address that is free")
}

// live asks for /livez as sonde run serves it.
func live(ctx context.Context, address string) bool {
	if host, port, err := net.SplitHostPort(address); err == nil && host == "" {
		address = net.JoinHostPort("127.0.0.1", port)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/livez", nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 64))
	return err == nil && strings.TrimSpace(string(text)) == "live"
}

// bindable tries to listen, and lets go at once.
func bindable(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
}

// detectors loads every bundle, which runs its self-test.
func detectors(list []config.Detector) []Finding {
	if len(list) == 0 {
		return one(OK, "detectors", "none is configured", "")
	}
	var out []Finding
	for _, d := range list {
		b, err := detector.Load(d.Bundle)
		if err != nil {
			out = append(out, Finding{Fail, "detectors", err.Error(), "copy the bundle again, or train it anew"})
			continue
		}
		out = append(out, Finding{OK, "detectors", fmt.Sprintf("%s %s: %s", b.Manifest.Name, b.Manifest.Version,
			strings.Join(strings.Fields(b.SelfTest()), " ")), ""})
	}
	return out
}
