package bus

import "strings"

// Match reports whether a subject matches a filter: tokens separated by dots,
// where * stands for one token and > at the end for one or more.
func Match(filter, subject string) bool {
	for {
		f, filterRest, moreFilter := strings.Cut(filter, ".")
		s, subjectRest, moreSubject := strings.Cut(subject, ".")
		if f == ">" {
			return !moreFilter && s != ""
		}
		if f != s && f != "*" || s == "" || moreFilter != moreSubject {
			return false
		}
		if !moreFilter {
			return true
		}
		filter, subject = filterRest, subjectRest
	}
}

// MatchAny reports whether a subject matches one of the filters; no filters
// match all.
func MatchAny(filters []string, subject string) bool {
	for _, f := range filters {
		if Match(f, subject) {
			return true
		}
	}
	return len(filters) == 0
}

// overlap reports whether a subject could match two of the filters.
func overlap(filters []string) bool {
	for i, a := range filters {
		for _, b := range filters[i+1:] {
			if collide(strings.Split(a, "."), strings.Split(b, ".")) {
				return true
			}
		}
	}
	return false
}

func collide(a, b []string) bool {
	for i := range min(len(a), len(b)) {
		switch {
		case a[i] == ">" || b[i] == ">":
			return true
		case a[i] != b[i] && a[i] != "*" && b[i] != "*":
			return false
		}
	}
	return len(a) == len(b)
}

// ValidSubject reports whether a message may be published to s: tokens without
// blanks and wildcards, separated by dots, at most 2 KiB.
func ValidSubject(s string) bool {
	if s == "" || len(s) > maxSubjectBytes {
		return false
	}
	for token := range strings.SplitSeq(s, ".") {
		if token == "" || token == "*" || token == ">" {
			return false
		}
	}
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == 0x7f })
}

const maxSubjectBytes = 2 << 10
