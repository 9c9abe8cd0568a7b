package schema

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func testHeader() Header {
	return Header{Kind: KindVectors, Tenant: "acme corp", Engine: "engine.0", Rank: 1, Epoch: 0xfeedface12345678,
		Hook: "resid_post", Layer: 3, Shard: 1, ShardCount: 2, DType: "bf16", Shape: []int{2, 4}, Model: "m",
		Revision: "r", WeightsDigest: "sha256:00", Quantisation: "none", EngineVersion: "1.2", PolicyVersion: "p",
		Prev: Cursor{Seq: 7, Row: 9}}
}

func testVectors(n, rowBytes int) []VectorRow {
	rows := make([]VectorRow, n)
	for i := range rows {
		vec := make([]byte, rowBytes)
		for k := range vec {
			vec[k] = byte(i*31 + k)
		}
		rows[i] = VectorRow{Seq: uint64(10 + i/5*3), Row: uint32(i % 5), Number: 77, Request: fmt.Sprintf("req-%d", i/7),
			Sample: 1, Position: int32(100 + i), Pass: 2, Phase: PhaseDecode, CaptureNS: 1_700_000_000_000_000_000 + int64(i),
			Vec: vec}
	}
	return rows
}

func encodeVectors(t testing.TB, h Header, rows []VectorRow) ([]byte, Header) {
	t.Helper()
	e, err := NewVectorEncoder(h)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if err := e.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	msg, got, err := e.Encode(h.Prev)
	if err != nil {
		t.Fatal(err)
	}
	return msg, got
}

func TestEveryFieldOfAVectorSurvives(t *testing.T) {
	h := testHeader()
	rows := testVectors(23, 16)
	msg, sent := encodeVectors(t, h, rows)
	b, err := Decode(msg)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(b.Header, sent) || sent.Prev != h.Prev || len(sent.Spans) != 5 {
		t.Fatalf("header differs:\nsent %+v\ngot  %+v", sent, b.Header)
	}
	for i, want := range rows {
		if got := b.Vector(i); !reflect.DeepEqual(got, want) {
			t.Fatalf("row %d differs:\nwant %+v\ngot  %+v", i, want, got)
		}
	}
	head, err := DecodeHeader(msg)
	if err != nil || !reflect.DeepEqual(head, b.Header) {
		t.Fatalf("header alone differs: %+v, %v", head, err)
	}
	vec := b.Vector(3).Vec
	vec[0] ^= 0xff
	if again, _ := Decode(msg); bytes.Equal(again.Vector(3).Vec, rows[3].Vec) {
		t.Fatal("vec does not alias the message: decoding copies")
	}
}

func TestRaggedRowsKeepTheirLengths(t *testing.T) {
	h := testHeader()
	h.Ragged, h.Shape, h.DType = true, nil, "f32"
	rows := testVectors(9, 16)
	for i := range rows {
		rows[i].Vec = rows[i].Vec[:4*(i%4)]
	}
	msg, _ := encodeVectors(t, h, rows)
	b, err := Decode(msg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		if !bytes.Equal(b.Vector(i).Vec, rows[i].Vec) {
			t.Fatalf("row %d has %d bytes; want %d", i, len(b.Vector(i).Vec), len(rows[i].Vec))
		}
	}
}

func TestAReusedEncoderWritesTheSameMessage(t *testing.T) {
	e, err := NewVectorEncoder(testHeader())
	if err != nil {
		t.Fatal(err)
	}
	rows := testVectors(23, 16)
	var first []byte
	for round := range 3 {
		for _, r := range rows {
			if err := e.Append(r); err != nil {
				t.Fatal(err)
			}
		}
		msg, _, err := e.Encode(Cursor{Seq: 1})
		if err != nil {
			t.Fatal(err)
		}
		e.Reset()
		if round == 0 {
			first = msg
		} else if !bytes.Equal(first, msg) {
			t.Fatalf("round %d differs from round 0", round)
		}
	}
}

// fill sets every field of a struct to a value that depends on its place, so
// that a column that is swapped with another is seen.
func fill[R any](n int) []R {
	rows := make([]R, n)
	for i := range rows {
		v := reflect.ValueOf(&rows[i]).Elem()
		for k := range v.NumField() {
			x := 1000*(i+1) + k
			switch f := v.Field(k); f.Kind() {
			case reflect.String:
				f.SetString(strings.Repeat("x", k%3) + fmt.Sprint(x))
			case reflect.Bool:
				f.SetBool(i%3 == 1)
			case reflect.Float32:
				f.SetFloat(float64(x) / 8)
			case reflect.Uint8:
				f.SetUint(uint64(x % 3))
			case reflect.Uint32, reflect.Uint64:
				f.SetUint(uint64(x))
			case reflect.Int32, reflect.Int64:
				f.SetInt(int64(-x))
			case reflect.Map:
				if i%2 == 1 {
					f.Set(reflect.ValueOf(map[string]string{"language": "de", "": fmt.Sprint(x)}))
				}
			default:
				panic(f.Kind())
			}
		}
	}
	return rows
}

func roundTrip[R any](t *testing.T, encode func(Header, []R) ([]byte, error), at func(*Batch, int) R) {
	t.Helper()
	rows := fill[R](19)
	msg, err := encode(testHeader(), rows)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Decode(msg)
	if err != nil {
		t.Fatal(err)
	}
	if b.Len() != len(rows) {
		t.Fatalf("%d rows; want %d", b.Len(), len(rows))
	}
	for i, want := range rows {
		if got := at(b, i); !reflect.DeepEqual(got, want) {
			t.Fatalf("row %d differs:\nwant %+v\ngot  %+v", i, want, got)
		}
	}
}

func TestEveryFieldOfStatsSurvives(t *testing.T)    { roundTrip(t, EncodeStats, (*Batch).Stats) }
func TestEveryFieldOfARequestSurvives(t *testing.T) { roundTrip(t, EncodeRequests, (*Batch).RequestAt) }
func TestEveryFieldOfAFactSurvives(t *testing.T)    { roundTrip(t, EncodeLedger, (*Batch).Ledger) }
func TestEveryFieldOfADetectionSurvives(t *testing.T) {
	roundTrip(t, EncodeDetections, (*Batch).Detection)
}

func TestTheNextMajorVersionIsRefusedWithASentence(t *testing.T) {
	msg, _ := encodeVectors(t, testHeader(), testVectors(3, 16))
	at := bytes.Index(msg, []byte(keyVersion))
	i := bytes.IndexByte(msg[at-40:at+60], '1')
	if at < 0 || i < 0 {
		t.Fatal("found no version to change")
	}
	for k := at - 40; k < at+60; k++ {
		if msg[k] == '1' && binary.LittleEndian.Uint32(msg[k-4:]) == 1 {
			msg[k] = '2'
		}
	}
	_, err := Decode(msg)
	if err == nil || !strings.Contains(err.Error(), `version "2" and this program reads version 1`) {
		t.Fatalf("version 2 gave %v", err)
	}
}
