package readers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sonde/internal/notrun"
)

// javaLibraries are parquet-java and its command line tool, as Maven brings them.
// They stay in build/java, so that only the first run downloads.
func javaLibraries(t *testing.T) (classPath string) {
	for _, program := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(program); err != nil {
			notrun.Mark(t, "parquet-java needs "+program+", and none was found")
		}
	}
	dir, err := filepath.Abs("../../build/java")
	if err != nil {
		t.Fatal(err)
	}
	pom := filepath.Join("testdata", "java", "pom.xml")
	if upToDate(pom, dir) {
		return filepath.Join(dir, "*")
	}
	fetch := exec.Command("mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies", "-DincludeScope=runtime",
		"-DoutputDirectory="+dir)
	if out, err := fetch.CombinedOutput(); err != nil {
		notrun.Mark(t, "parquet-java could not be downloaded with Maven: "+firstLine(out))
	}
	text, err := os.ReadFile(pom)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "pom.xml"), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "*")
}

// upToDate says whether a folder holds what this pom asks for, whole.
func upToDate(pom, dir string) bool {
	want, err := os.ReadFile(pom)
	if err != nil {
		return false
	}
	got, err := os.ReadFile(filepath.Join(dir, "pom.xml"))
	return err == nil && string(got) == string(want)
}

func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

func java(t *testing.T, args ...string) string {
	c := exec.Command("java", args...)
	var diagnostics strings.Builder
	c.Stderr = &diagnostics
	out, err := c.Output()
	if err != nil {
		t.Fatalf("java %s: %v\n%s", strings.Join(args, " "), err, &diagnostics)
	}
	return string(out)
}

func TestParquetJavaReadsEveryBitOfTheVectors(t *testing.T) {
	classPath := javaLibraries(t)
	d := newDataset(t)
	program := filepath.Join("testdata", "java", "PrintVectors.java")
	args := append([]string{"-cp", classPath, program}, d.files("vectors")...)
	d.compare("parquet-java", strings.Split(strings.TrimSpace(java(t, args...)), "\n"))
}

// The tool of parquet-java shows lists as null, whoever wrote them, so it is asked
// for the other columns.
func TestTheToolOfParquetJavaReadsEveryTable(t *testing.T) {
	classPath := javaLibraries(t)
	d := newDataset(t)
	args, want := []string{"-cp", classPath, "org.apache.parquet.cli.Main", "cat", "-n", "1000000"}, 0
	columns := map[string]string{}
	for table, rows := range d.of {
		want += rows
		for _, name := range d.files(table) {
			args = append(args, name)
			for _, field := range d.open(name).Schema().Fields() {
				columns[field.Name()] = table
			}
		}
	}
	out := java(t, args...)
	if rows := strings.Count(out, "{\"tenant\": \""); rows != want {
		t.Errorf("parquet-cli reads %d rows of all tables, which have %d", rows, want)
	}
	for column, table := range columns {
		if !strings.Contains(out, "\""+column+"\": ") {
			t.Errorf("parquet-cli shows no column %s of %s", column, table)
		}
	}
}
