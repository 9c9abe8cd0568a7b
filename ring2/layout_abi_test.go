package ring2

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"sonde/internal/notrun"
)

// buildC compiles one C or C++ file with the warnings of a careful stranger.
func buildC(t *testing.T, compiler, std, source string) string {
	t.Helper()
	path, err := exec.LookPath(compiler)
	if err != nil {
		notrun.Mark(t, compiler+" is not installed")
	}
	binary := filepath.Join(t.TempDir(), "program")
	command := exec.Command(path, "-std="+std, "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I.", "-o", binary,
		source)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", command.Args, err, out)
	}
	return binary
}

var (
	headerStruct = regexp.MustCompile(`(?ms)^struct (ring2_\w+) \{$(.*?)^\};$`)
	headerField  = regexp.MustCompile(`(?m)^\s+(?:alignas\(64\) )?uint\d+_t (\w+)`)
	headerDefine = regexp.MustCompile(`(?m)^#define (RING2_\w+) \w`)
)

// offsetPrinter writes a C program that prints what the compiler makes of the
// header: "struct.field offset size" and "CONSTANT value 0".
func offsetPrinter(t *testing.T, header string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("#include \"ring2_abi.h\"\n#include <stdio.h>\nint main(void) {\n")
	for _, s := range headerStruct.FindAllStringSubmatch(header, -1) {
		fmt.Fprintf(&b, "printf(\"%s.sizeof 0 %%zu\\n\", sizeof(struct %s));\n", s[1], s[1])
		for _, f := range headerField.FindAllStringSubmatch(s[2], -1) {
			fmt.Fprintf(&b, "printf(\"%s.%s %%zu %%zu\\n\", offsetof(struct %s, %s), sizeof(((struct %s *)0)->%s));\n",
				s[1], f[1], s[1], f[1], s[1], f[1])
		}
	}
	for _, d := range headerDefine.FindAllStringSubmatch(header, -1) {
		fmt.Fprintf(&b, "printf(\"%s %%llu 0\\n\", (unsigned long long)%s);\n", d[1], d[1])
	}
	b.WriteString("return 0;\n}\n")
	source := filepath.Join(t.TempDir(), "printer.c")
	if err := os.WriteFile(source, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return source
}

// plain makes RING2_DESC_OFF, abiDescOff and desc_off comparable.
func plain(name string) string {
	name = strings.TrimPrefix(name, "abi") // of Go; C's are called RING2_ABI_
	return strings.TrimPrefix(strings.ToLower(strings.ReplaceAll(name, "_", "")), "ring2")
}

func goLayout(t *testing.T) map[string][2]uint64 {
	t.Helper()
	out := map[string][2]uint64{}
	for _, v := range []any{abiConfig{}, abiProducer{}, abiConsumer{}, abiDesc{}, abiMessage{}} {
		typ := reflect.TypeOf(v)
		out[plain(typ.Name())+".sizeof"] = [2]uint64{0, uint64(typ.Size())}
		for i := range typ.NumField() {
			if f := typ.Field(i); f.Name != "_" {
				out[plain(typ.Name())+"."+strings.ToLower(f.Name)] = [2]uint64{uint64(f.Offset), uint64(f.Type.Size())}
			}
		}
	}
	file, err := parser.ParseFile(token.NewFileSet(), "abi.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			n, err := strconv.ParseUint(v.Values[0].(*ast.BasicLit).Value, 0, 64)
			if err != nil {
				t.Fatal(err)
			}
			out[plain(v.Names[0].Name)] = [2]uint64{n, 0}
		}
		return out // the first block holds the constants of the header, later ones derived offsets
	}
	t.Fatal("abi.go holds no constants")
	return nil
}

// The Go compiler checks abi.go against the generator's arithmetic; only a C
// compiler knows what C makes of the header.
func TestGoAndCAgreeOnEveryOffset(t *testing.T) {
	header, err := os.ReadFile("ring2_abi.h")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(buildC(t, "gcc", "c11", offsetPrinter(t, string(header)))).Output()
	if err != nil {
		t.Fatal(err)
	}
	want, seen := goLayout(t), 0
	for line := range strings.Lines(string(out)) {
		var name string
		var c [2]uint64
		if _, err := fmt.Sscan(line, &name, &c[0], &c[1]); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		got, ok := want[plain(name)]
		if !ok || got != c {
			t.Errorf("%s: C says %d, abi.go says %d (present: %v)", name, c, got, ok)
		}
		seen++
	}
	if seen != len(want) || seen < 80 {
		t.Errorf("C printed %d names, abi.go has %d", seen, len(want))
	}
}

func TestHeaderIsAlsoCPlusPlus(t *testing.T) {
	source := filepath.Join(t.TempDir(), "header.cc")
	if err := os.WriteFile(source, []byte("#include \"ring2_abi.h\"\nint main() { return 0; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	buildC(t, "g++", "c++11", source)
}

// The exported codes are written by hand beside the header's.
func TestExportedCodesAreThoseOfTheHeader(t *testing.T) {
	for name, pair := range map[string][2]int{
		"MODEL":            {int(KindModel), abiKindModel},
		"LAYOUT":           {int(KindLayout), abiKindLayout},
		"REQUEST_OPEN":     {int(KindRequestOpen), abiKindRequestOpen},
		"STEP":             {int(KindStep), abiKindStep},
		"CAPTURE":          {int(KindCapture), abiKindCapture},
		"AMEND":            {int(KindAmend), abiKindAmend},
		"MISSING":          {int(KindMissing), abiKindMissing},
		"REQUEST_END":      {int(KindRequestEnd), abiKindRequestEnd},
		"OBITUARY":         {int(KindObituary), abiKindObituary},
		"BYE":              {int(KindBye), abiKindBye},
		"FLAG_ABORTED":     {int(FlagAborted), abiFlagAborted},
		"FLAG_PAYLOAD_CRC": {int(FlagPayloadCRC), abiFlagPayloadCRC},
		"dropped_rows":     {ReasonCount, len(abiProducer{}.DroppedRows)},
		"messages":         {len(messageNames) - 1, abiMessageAbortAck},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %d in Go and %d in the header", name, pair[0], pair[1])
		}
	}
}
