package main

import (
	"math"
	"slices"
)

// median returns the middle value, the mean of the two middle ones for an even
// number, NaN for none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Clone(v)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// percentile returns the smallest value that at least p percent of v are not
// above (nearest rank), NaN for none.
func percentile(v []float64, p float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Clone(v)
	slices.Sort(s)
	rank := int(math.Ceil(p / 100 * float64(len(s))))
	return s[min(max(rank, 1), len(s))-1]
}

// pairedRatio divides round by round and returns the median of the quotients:
// what changes between rounds (the machine's mood) then cancels out. Rounds
// either side lacks, or where the divisor is 0, are left out.
func pairedRatio(num, den []float64) float64 {
	var q []float64
	for i := range min(len(num), len(den)) {
		if den[i] != 0 && !math.IsNaN(num[i]) && !math.IsNaN(den[i]) {
			q = append(q, num[i]/den[i])
		}
	}
	return median(q)
}

// spread returns the distance between the quartiles as a part of the median,
// 0 where fewer than three values say nothing about it.
func spread(v []float64) float64 {
	m := median(v)
	if len(v) < 3 || m == 0 || math.IsNaN(m) {
		return 0
	}
	return (percentile(v, 75) - percentile(v, 25)) / m
}
