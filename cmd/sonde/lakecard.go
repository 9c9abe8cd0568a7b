package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"github.com/parquet-go/parquet-go"
	"github.com/spf13/cobra"

	"sonde/lakehouse"
	"sonde/lakehouse/account"
	"sonde/lakehouse/table"
)

// maxCardFiles bounds the files that a card names. Sites that show cards refuse
// front matter of several megabytes.
const maxCardFiles = 20_000

var licenceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$`)

func lakeCardCommand(dir *string) *cobra.Command {
	var out, licence string
	c := &cobra.Command{
		Use:   "card",
		Short: "Write a dataset card: README.md with what is in it and how to load it",
		Long: `Write a dataset card into the lake. Its front matter has a configuration for each table, which
lists the files of the newest commit, so that load_dataset of Hugging Face datasets reads those and
no leftovers. The card is about one commit: write it again when more was stored.

  sonde lake card --license cc-by-4.0`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if licence != "" && !licenceName.MatchString(licence) {
				return usageError{fmt.Errorf("--license %q is no identifier; write one like cc-by-4.0 or apache-2.0", licence)}
			}
			card, err := newCard(c.Context(), *dir, licence)
			if err != nil {
				return err
			}
			if out == "-" {
				return card.write(c.OutOrStdout())
			}
			name := out
			if name == "" {
				name = filepath.Join(*dir, "README.md")
			}
			if err := writeWhole(name, card.write); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s: commit %d, %d files in %d tables\n", name, card.version, card.files,
				len(card.tables))
			return err
		},
	}
	c.Flags().StringVar(&out, "out", "", "file to write; default README.md in the lake, - for standard output")
	c.Flags().StringVar(&licence, "license", "", "identifier of the licence of the data; without it the card names none")
	return c
}

// card is what a dataset card says.
type card struct {
	licence string
	version uint64
	files   int
	tables  []cardTable // those that have files
	hooks   []lakehouse.Hook
	account *account.Account
	models  []string // a line for each
	plain   []cardColumn

	requests, ended           int
	promptTokens, decodeCount int64
}

// cardColumn is a column of table requests that Hugging Face datasets can hold.
type cardColumn struct{ name, dtype string }

type cardTable struct {
	name  string
	files []string
	rows  int64
	bytes int64
}

func newCard(ctx context.Context, dir, licence string) (*card, error) {
	lake, err := lakehouse.Open(dir)
	if err != nil {
		return nil, err
	}
	c := &card{licence: licence, version: lake.Version()}
	for _, name := range table.Names {
		t := cardTable{name: string(name)}
		for _, f := range lake.Files() {
			if f.Table == t.name {
				t.files = append(t.files, f.Path)
				t.rows += f.Rows
				t.bytes += f.Bytes
			}
		}
		if len(t.files) > 0 {
			c.tables = append(c.tables, t)
			c.files += len(t.files)
		}
	}
	if c.files > maxCardFiles {
		return nil, fmt.Errorf("write a card: the lake has %d files, and a card names at most %d; load it by its commit log "+
			"(lakehouse/FORMAT.md)", c.files, maxCardFiles)
	}
	if err := c.describeRequests(dir); err != nil {
		return nil, err
	}
	models := map[string]bool{}
	err = lake.Requests(ctx, lakehouse.Query{}, func(r *lakehouse.Request) error {
		c.requests++
		if r.Ended {
			c.ended++
		}
		c.promptTokens += int64(r.PromptTokens)
		c.decodeCount += int64(r.GeneratedTokens)
		models[fmt.Sprintf("| %s | %s | `%s` | %s |", cell(r.Model), cell(orNone(r.Revision)), cell(orNone(r.WeightsDigest)),
			cell(orNone(r.Quantisation)))] = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	for line := range models {
		c.models = append(c.models, line)
	}
	sort.Strings(c.models)
	if c.hooks, err = lake.Hooks(ctx); err != nil {
		return nil, err
	}
	c.account, err = lake.Account(ctx)
	return c, err
}

// describeRequests lists the columns of table requests but the labels: datasets
// has no map type, and fails on a file that has one unless it is told the others.
func (c *card) describeRequests(dir string) error {
	for _, t := range c.tables {
		if t.name != string(table.Requests) {
			continue
		}
		f, err := os.Open(filepath.Join(dir, filepath.FromSlash(t.files[0])))
		if err != nil {
			return fmt.Errorf("write a card: %w", err)
		}
		defer f.Close() // was only read
		info, err := f.Stat()
		if err != nil {
			return fmt.Errorf("write a card: %w", err)
		}
		file, err := parquet.OpenFile(f, info.Size())
		if err != nil {
			return fmt.Errorf("write a card: read %s: %w", f.Name(), err)
		}
		for _, field := range file.Schema().Fields() {
			if !field.Leaf() {
				continue
			}
			dtype := map[parquet.Kind]string{parquet.Boolean: "bool", parquet.Int32: "int32", parquet.Int64: "int64",
				parquet.ByteArray: "string"}[field.Type().Kind()]
			if dtype != "" {
				c.plain = append(c.plain, cardColumn{field.Name(), dtype})
			}
		}
	}
	return nil
}

// cell keeps text of others from breaking out of a cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "\r", " ", "`", "'", "<", "&lt;").Replace(text)
}

func (c *card) write(out io.Writer) error {
	var b strings.Builder
	c.frontMatter(&b)
	fmt.Fprintf(&b, `# Activations of a language model

What a language model computed inside while it answered %d requests, token by token, as Sonde captured it: commit %d of
the dataset. Every vector has the bits that were captured; a row that is missing is named in table ledger.

`, c.requests, c.version)
	c.contents(&b)
	c.loading(&b)
	_, err := io.WriteString(out, b.String())
	return err
}

// frontMatter is what programs read of a card.
func (c *card) frontMatter(b *strings.Builder) {
	b.WriteString("---\npretty_name: Activations captured by Sonde\n")
	if c.licence != "" {
		fmt.Fprintf(b, "license: %s\n", c.licence)
	}
	b.WriteString("tags:\n- interpretability\n- activations\nconfigs:\n")
	for _, t := range c.tables {
		fmt.Fprintf(b, "- config_name: %s\n", t.name)
		if t.name == string(table.Vectors) {
			b.WriteString("  default: true\n")
		}
		b.WriteString("  data_files:\n  - split: train\n    path:\n")
		for _, f := range t.files {
			fmt.Fprintf(b, "    - %q\n", f)
		}
		if t.name == string(table.Requests) {
			b.WriteString("  columns:\n")
			for _, column := range c.plain {
				fmt.Fprintf(b, "  - %s\n", column.name)
			}
		}
	}
	if len(c.plain) > 0 {
		fmt.Fprintf(b, "dataset_info:\n- config_name: %s\n  features:\n", table.Requests)
		for _, column := range c.plain {
			fmt.Fprintf(b, "  - name: %s\n    dtype: %s\n", column.name, column.dtype)
		}
	}
	b.WriteString("---\n\n")
}

func (c *card) contents(b *strings.Builder) {
	b.WriteString("| table | rows | files | bytes |\n|---|---|---|---|\n")
	for _, t := range c.tables {
		fmt.Fprintf(b, "| `%s` | %d | %d | %d |\n", t.name, t.rows, len(t.files), t.bytes)
	}
	fmt.Fprintf(b, "\nRequests: %d samples of requests, of which %d ended; %d prompt tokens and %d generated ones.\n",
		c.requests, c.ended, c.promptTokens, c.decodeCount)
	b.WriteString("\n| model | revision | digest of the weights | quantisation |\n|---|---|---|---|\n")
	b.WriteString(strings.Join(c.models, "\n"))
	b.WriteString("\n\n| hook | layers | dtype | shape of a row | rows | table |\n|---|---|---|---|---|---|\n")
	for _, h := range c.hooks {
		shape := orNone(h.Shape)
		if h.Ragged {
			shape += ", as often as the row is long"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %d | `%s` |\n", cell(h.Hook), layersText(h.Layers), cell(h.DType), cell(shape),
			h.Rows, h.Table)
	}
	b.WriteString("\nThe account of all rows that the capture policy chose:\n\n```\n")
	b.WriteString(strings.ReplaceAll(c.account.String(), "`", "'"))
	b.WriteString("```\n\n")
	if c.licence == "" {
		b.WriteString("No licence was named when this card was written; ask whoever gave you the data.\n\n")
	}
}

// layersText writes layers like 0-3, 7; hooks without a layer have -.
func layersText(layers []int) string {
	var parts []string
	for i := 0; i < len(layers); {
		last := i
		for last+1 < len(layers) && layers[i] >= 0 && layers[last+1] == layers[last]+1 {
			last++
		}
		if last > i {
			parts = append(parts, fmt.Sprintf("%d-%d", layers[i], layers[last]))
		} else {
			parts = append(parts, layerText(layers[i]))
		}
		i = last + 1
	}
	return strings.Join(parts, ", ")
}

const cardLoading = `## Loading it

Put the path of this folder for LAKE. Only files that the log in _log names count; leftovers of a writer that died may
lie beside them. The configurations above list the files of this commit.

$$$python
from datasets import load_dataset
vectors = load_dataset(LAKE, "vectors", split="train")       # vec: float32, exact; null where raw holds i32 or i64
@@@

Of table requests it leaves out the labels, since datasets has no map type.

With the Python package of Sonde, also vectors as numpy arrays with gaps as errors:

$$$python
import sonde
lake = sonde.open_lake(LAKE)
lake.requests(), lake.tensor(REQUEST, HOOK, LAYER).values
@@@

With DuckDB or Polars, over the committed files:

$$$python
import duckdb, polars
duckdb.sql(f"select hook, layer, count(*) from read_parquet({lake.files('vectors')}) group by all order by all")
polars.scan_parquet(lake.files("vectors")).filter(polars.col("layer") == 2).collect()
@@@

In table vectors a position that was computed again is there with each pass: take the last one that the ledger does not
call rejected or phantom, as lake.tensor does.
`

func (c *card) loading(b *strings.Builder) {
	b.WriteString(strings.NewReplacer("$$$", "```", "@@@", "```").Replace(cardLoading))
}
