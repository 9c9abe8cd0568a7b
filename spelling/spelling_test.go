package spelling

import "testing"

func TestASlipOfTheHandIsNear(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"linger_ms", "linger_ms", 0}, {"resid_pots", "resid_post", 2},
		{"lingr_ms", "linger_ms", 1}, {"kitten", "sitting", 3}, {"ab", "ba", 2},
	} {
		if got := Distance(c.a, c.b); got != c.want {
			t.Errorf("%q to %q: got %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
