// Package spelling compares words, so that an error can name what its reader may
// have meant.
package spelling

// Distance counts the bytes to insert, remove or change between two words (the
// Levenshtein distance). It takes time in proportion to len(a) * len(b).
func Distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
