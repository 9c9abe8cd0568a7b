package oracle

import (
	"testing"

	"sonde/lakehouse/account"
)

func TestALawThatDoesNotHoldIsAnError(t *testing.T) {
	metrics := map[string]float64{
		"sonde_producer_captured_rows": 21,
		`sonde_producer_rows_total{class="acknowledged",engine="e",rank="0",reason=""}`:   10,
		`sonde_producer_rows_total{class="acknowledged",engine="e",rank="1",reason=""}`:   1,
		`sonde_producer_rows_total{class="dropped",engine="e",rank="0",reason="no_slot"}`: 2,
		`sonde_producer_rows_total{class="dropped",engine="e",rank="0",reason="budget"}`:  1,
		`sonde_producer_rows_total{class="aborted",engine="e",rank="0",reason=""}`:        3,
		`sonde_producer_rows_total{class="lost",engine="e",rank="0",reason=""}`:           1,
		`sonde_producer_rows_total{class="dead_lettered",engine="e",rank="0",reason=""}`:  3,
		`sonde_producer_rows_total{class="filtered",engine="e",rank="0",reason=""}`:       100,
		"sonde_producer_rows_total": 121,
	}
	if err := LawsOf(metrics, &account.Account{Stored: 11}, 0).Err(); err != nil {
		t.Error(err)
	}
	for what, l := range map[string]Laws{"stored": LawsOf(metrics, &account.Account{Stored: 10}, 0),
		"pending": LawsOf(metrics, &account.Account{Stored: 11}, 1), "nothing": LawsOf(nil, &account.Account{}, 0)} {
		if l.Err() == nil {
			t.Errorf("%s: no error", what)
		}
	}
	metrics["sonde_producer_inflight_rows"] = 1
	if LawsOf(metrics, &account.Account{Stored: 11}, 0).Err() == nil {
		t.Error("in flight: no error")
	}
}
