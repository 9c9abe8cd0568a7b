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

// validSubject reports whether a message may be published to s: tokens without
// blanks and wildcards, separated by dots.
func validSubject(s string) bool {
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
