package docrun

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	inlineLink = regexp.MustCompile(`\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?: "[^"]*")?\)`)
	namedLink  = regexp.MustCompile(`(?m)^ {0,3}\[[^\]]+\]:\s*(\S+)`)
	heading    = regexp.MustCompile(`^#{1,6} +(.*?)(?: +#+)? *$`)
	htmlAnchor = regexp.MustCompile(`<a (?:id|name)="([^"]+)"`)
	codeSpan   = regexp.MustCompile("`+[^`]*`+")
	notInSlug  = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	markdown   = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)|\*\*|~~`)
)

// prose is a page without its code, where nothing is a link.
func prose(text string) string {
	var out []string
	end := ""
	for _, line := range strings.Split(text, "\n") {
		m := fence.FindStringSubmatch(line)
		switch {
		case end != "":
			if strings.TrimSpace(line) == end {
				end = ""
			}
			line = ""
		case m != nil:
			end, line = m[2], ""
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// anchorsOf lists the anchors of a page, as GitHub makes them of its headings.
func anchorsOf(text string) map[string]bool {
	out := map[string]bool{}
	count := map[string]int{}
	for _, line := range strings.Split(prose(text), "\n") {
		for _, m := range htmlAnchor.FindAllStringSubmatch(line, -1) {
			out[m[1]] = true
		}
		m := heading.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		title := markdown.ReplaceAllString(strings.ReplaceAll(m[1], "`", ""), "$1")
		slug := strings.ReplaceAll(notInSlug.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
		name := slug
		if n := count[slug]; n > 0 {
			name += "-" + string(rune('0'+n))
		}
		count[slug]++
		out[name] = true
	}
	return out
}

// brokenLinks lists the links of a page that lead nowhere.
func brokenLinks(root, name, text string) []string {
	var broken []string
	clean := codeSpan.ReplaceAllString(prose(text), "")
	matches := append(inlineLink.FindAllStringSubmatch(clean, -1), namedLink.FindAllStringSubmatch(clean, -1)...)
	for _, m := range matches {
		target, anchor, hasAnchor := strings.Cut(strings.Trim(m[1], "<>"), "#")
		if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
			continue
		}
		to, page := name, text
		if target != "" {
			to = path.Join(path.Dir(name), target)
			if strings.HasPrefix(to, "../") {
				broken = append(broken, m[1]+" leads out of the repository")
				continue
			}
			info, err := os.Stat(filepath.Join(root, to))
			if err != nil {
				broken = append(broken, m[1]+" does not exist")
				continue
			}
			if !hasAnchor || info.IsDir() {
				continue
			}
			content, err := os.ReadFile(filepath.Join(root, to))
			if err != nil {
				broken = append(broken, err.Error())
				continue
			}
			page = string(content)
		}
		if path.Ext(to) == ".md" && hasAnchor && !anchorsOf(page)[anchor] {
			broken = append(broken, m[1]+": "+to+" has no such heading")
		}
	}
	return broken
}

// The fear: a link that leads nowhere.
func TestEveryLinkAndAnchorLeadsSomewhere(t *testing.T) {
	for _, name := range pages(t) {
		text, err := os.ReadFile(filepath.Join(root(t), name))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range brokenLinks(root(t), name, string(text)) {
			t.Errorf("%s: link %s", name, b)
		}
	}
}

func TestBrokenLinksAreFound(t *testing.T) {
	dir := t.TempDir()
	other := "# One `code` (two)\n\n## Twice\n\n## Twice\n\n```sh\n# no heading\n```\n"
	if err := os.WriteFile(filepath.Join(dir, "other.md"), []byte(other), 0o644); err != nil {
		t.Fatal(err)
	}
	for text, wrong := range map[string]string{
		"[a](other.md)":                        "",
		"[a](other.md#one-code-two)":           "",
		"[a](other.md#twice-1)":                "",
		"[a](#here)\n# Here":                   "",
		"[a](https://example.org/x#y)":         "",
		"`[a](absent.md)`":                     "",
		"```\n[a](absent.md)\n```":             "",
		"[a](absent.md)":                       "absent.md does not exist",
		"[a](other.md#no-heading)":             "other.md#no-heading: other.md has no such heading",
		"[a](other.md#twice-2)":                "other.md#twice-2: other.md has no such heading",
		"[a](#there)\n# Here":                  "#there: page.md has no such heading",
		"[a](../outside.md)":                   "../outside.md leads out of the repository",
		"[a][b]\n\n[b]: absent.md":             "absent.md does not exist",
		"![picture](absent.png \"a title\")":   "absent.png does not exist",
		"[`a`](absent.md) and [b](other.md)":   "absent.md does not exist",
		"| [a](other.md) | [b](absent_(1)) |":  "absent_(1) does not exist",
		"~~~sh\n[a](x)\n~~~\n[a](absent.md#x)": "absent.md#x does not exist",
	} {
		got := strings.Join(brokenLinks(dir, "page.md", text), "; ")
		if got != wrong {
			t.Errorf("%q: %q, want %q", text, got, wrong)
		}
	}
}
