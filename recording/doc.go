// Package recording keeps what an agent reads from rings, so that it can be read
// again later: the configuration of each ring, the snapshot that came with it and
// every record, control and capture alike, with their sequence numbers and
// capture times.
//
// A recording is a folder with one folder for each session, that is for each time
// that a rank attached. Run records what comes to a listener; Writer records one
// session. Open checks a recording as a whole, and a Reader gives one session of
// it to an agent in place of a ring. FORMAT.md describes the files.
package recording
